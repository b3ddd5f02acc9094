"""Recommenders to compare with.

- `popularity`, `recent_popularity`, `item_cosine`, `sequential`, `session_knn`, `ease`, `cease`, `ials`,
  `text_neighbours`, `bm25`: one file each; `mix`: the sum of two; `recency`: histories in which what is older counts
  less.
- `baseline`: what a kind of baseline is; `suite`: all of them, fitted within a budget.
- `tuning`: hyperparameters, chosen on validation.
"""
