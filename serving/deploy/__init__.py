"""Which bundle is served, and changing it.

- `prepare`: a bundle verified, with an index; `swap`: `towers deploy` and `towers rollback`.
- `hot_reload`: `RecommenderProvider`, the recommender of an application, replaced when there is another;
  `mlflow_registry`: bundles behind an alias of MLflow's model registry.
"""
