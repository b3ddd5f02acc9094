"""How good a recommender is.

- `metrics`: recall, NDCG, MRR and others; `evaluate`: the loop over users; `two_tower_recommender`: a model as a
  recommender of items.
- `baselines`: recommenders to compare with.
- `report`: the comparison as JSON, text and HTML; `text_table`: tables in the terminal; `pages`: HTML pages from the
  templates in `training/templates/`.
"""
