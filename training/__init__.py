"""From batches to a bundle, and from a bundle to a judgement.

- `config`: `TrainingConfig`.
- `negatives`, `losses`: what the model is asked to tell apart; `mining`: which items are hardest to.
- `trainer`, `checkpoint`: the loop, to be read in one sitting; exact resume. `caching`: large batches in little memory.
- `metrics`, `evaluation`, `scoring`, `baselines`, `report`: how good it is, and beside what.
- `learning`, `shipping`, `judging`: from a split to a trained model; what `towers train` and `towers evaluate` do.
- `runs`, `card`, `progress`: where runs are kept, a bundle's README, and what a person sees meanwhile.
- `tracking`: MLflow, only here.
- `proposal`, `commands`: run.toml with its reasons; `towers init`, `towers train`, `towers evaluate`.

Depends on `towers` and `features`; does not know `serving`.
"""
