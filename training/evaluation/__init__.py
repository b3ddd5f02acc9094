"""Evaluation of recommenders.

- `metrics`: recall, NDCG, MRR and others; `evaluate`: the loop over users; `two_tower_recommender`: a model as a
  recommender of items; `popular_items`: what unknown users get.
- `intervals`: confidence over questions and seeds; `comparison`: recommenders on the same questions, who is ahead.
- `baselines`: recommenders to compare with.
- `advice`: what to try where a baseline is ahead.
- `report`: the comparison as JSON, text and HTML; `report_rows`: its rows; `verdict`: its first two sentences;
  `details`: what the page shows beyond the metrics; `report_page`: the page; `charts`: places of marks in its pictures.
- `text_table`: tables in the terminal; `pages`: HTML pages from the templates in `training/templates/`.
"""
