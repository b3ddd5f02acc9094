"""Storage and tracking of runs.

- `run_folder`: names, locks and links of runs; `mlflow_tracker`: parameters, metrics, files and models in MLflow.
- `provenance`: names of runs, versions of the code, and tables as data sets; `cost`: time and memory of a run.
- `model_card`: a bundle's README; `progress`: progress bars and lines.
"""
