"""From batches to weights.

- `trainer`: `Trainer`, the loop; `checkpoint`: exact resume; `weight_averaging`: averages of weights.
- `losses`: sampled softmax with log-Q correction and its relatives; `negatives`: in-batch, sampled and cross-batch
  negatives; `hard_negatives`: mined ones; `gradient_caching`: large batches in little memory (GradCache).
- `spectral_init`: item embeddings that begin at a truncated SVD.
- `fit`: a split to a trained model.
"""
