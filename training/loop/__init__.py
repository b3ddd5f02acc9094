"""From batches to weights.

- `build`: model, optimisers, batches and negatives of a run; `trainer`: `Trainer`, its steps.
- `checkpoint`: exact resume; `weight_averaging`: averages of weights.
- `losses`: sampled softmax with log-Q correction and its relatives; `negatives`: in-batch, sampled and cross-batch
  negatives; `hard_negatives`: mined ones; `gradient_caching`: large batches in little memory (GradCache).
- `processes`: what is divided when several processes train together.
- `spectral_init`: item embeddings initialised from a truncated SVD.
- `trend`: recent popularity at the time of each prediction.
- `fit`: a split to a trained model; `continuation`: a trained model that goes on with new interactions.
"""
