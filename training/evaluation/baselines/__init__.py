"""Recommenders to compare with.

- `popularity`, `item_cosine`, `ease`, `ials`, `text_neighbours`, `bm25`: one file each.
- `tuning`: their hyperparameters, chosen on validation.
"""
