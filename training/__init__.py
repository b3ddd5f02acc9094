"""From batches to a bundle, and from a bundle to a judgement.

- `config`: `TrainingConfig`.
- `negatives`, `losses`: what the model is asked to tell apart.
- `trainer`: the loop, to be read in one sitting.
- `checkpoint`: exact resume.
- `metrics`, `evaluation`, `scoring`, `baselines`, `report`: how good it is, and beside what.
- `tracking`: MLflow, only here.
- `commands`: `towers init`, `towers train`, `towers evaluate`.

Depends on `towers` and `features`; does not know `serving`.
"""
