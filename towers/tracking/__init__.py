"""MLflow, as training and serving use it.

- `store`: its address, client, experiments and pages; `logged_model`: a bundle as an MLflow model, registered.
"""
