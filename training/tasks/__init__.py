"""The work of the commands, one file each.

- `init`: `towers init`; `choose`: the trainings of `towers init --minutes`; `train`: `towers train`;
  `continue_training`: `towers train --continue`; `evaluate`: `towers evaluate`; `audit`: `towers audit`;
  `train_ranker`: `towers train-ranker`; `tune`: `towers tune`; `compare`: `towers compare`; `plan`: `towers plan`;
  `promotion`: the comparison of `towers promote`.
- `protocols`: which split an evaluation or a training uses; `held_out`: what the training of a bundle held out;
  `rank_bundles`: bundles on such questions; `reranked`: the same with their re-rankers.
"""
