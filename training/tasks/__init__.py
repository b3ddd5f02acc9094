"""The work of the commands, one file each.

- `init`: `towers init`; `train`: `towers train`; `evaluate`: `towers evaluate`; `audit`: `towers audit`;
  `train_ranker`: `towers train-ranker`; `tune`: `towers tune`.
- `protocols`: which split an evaluation or a training uses.
"""
