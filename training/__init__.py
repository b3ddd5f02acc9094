"""From batches to a bundle, and from a bundle to a judgement.

- `config`: `TrainingConfig`.
- `negatives`, `losses`: what the model is asked to tell apart; `mining`: which items are hardest to.
- `spectral`: where items begin, if not at random.
- `trainer`, `checkpoint`: the loop, to be read in one sitting; exact resume. `averaging`: the weights that are kept;
  `caching`: large batches in little memory.
- `metrics`, `evaluation`, `scoring`, `baselines`, `lexical`, `report`: how good it is, and beside what.
- `ranks`, `facets`, `slicing`, `gates`, `audit`: what an evaluation keeps, and where the recommender fails. `layout`:
  how reports look.
- `learning`, `shipping`, `judging`: from a split to a trained model; what `towers train` and `towers evaluate` do;
  `auditing`: what `towers audit` does.
- `shortlists`, `lessons`: what retrieval finds for questions held out; `ranking`, `text_ranking`: how rankers come of
  it; `reranking`: what `towers train-ranker` does.
- `runs`, `card`, `progress`: where runs are kept, a bundle's README, and what a person sees meanwhile.
- `tracking`: MLflow, only here.
- `proposal`, `presets`, `commands`: run.toml with its reasons, sizes of the model; the commands.

Depends on `towers` and `features`; does not know `serving`.
"""
