"""From tables to a bundle, and from a bundle to a judgement.

- `config`: `TrainingConfig` and `RunConfig`; `presets`: sizes of the model.
- `loop`: from batches to weights; `evaluation`: metrics, reports and baselines; `audit`: where a recommender fails, by
  slice; `rerankers`: training of re-rankers.
- `distributed`: training in several processes; `prepared`: interactions that are larger than memory, sorted on disk;
  `tuning`: search for better settings; `details`: what a report shows beyond the metrics; `planning`: what a training
  will take.
- `runs`: run folders, MLflow, model cards, progress.
- `tasks`: one file for each command; `commands`: the commands' flags.

Imports `towers` and `features`; does not know `serving`.
"""
