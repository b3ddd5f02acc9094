"""The work of the commands, one file each.

- `init`: `towers init`; `train`: `towers train`; `evaluate`: `towers evaluate`; `audit`: `towers audit`;
  `train_ranker`: `towers train-ranker`; `tune`: `towers tune`; `compare`: `towers compare`; `promotion`: the comparison
  of `towers promote`; `continue_training`: `towers train --continue`.
- `protocols`: which split an evaluation or a training uses; `held_out`: what the training of a bundle held out;
  `rank_bundles`: bundles on such questions.
"""
