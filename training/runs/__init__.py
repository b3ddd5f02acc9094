"""Storage and tracking of runs.

- `run_folder`: names, locks and links of runs; `mlflow_tracker`: parameters and metrics in MLflow.
- `model_card`: a bundle's README; `progress`: progress bars and lines.
"""
