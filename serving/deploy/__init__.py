"""Deployment of bundles to a running service.

- `prepare`: verifies a bundle and builds its index; `swap`: `towers deploy` and `towers rollback`.
- `hot_reload`: `RecommenderProvider`, the recommender of an application, replaced when there is a new bundle or index;
  `mlflow_registry`: bundles behind an alias of MLflow's model registry.
"""
