"""Where a recommender fails: metrics by slice of users and items.

- `ranks`: what an evaluation keeps for each question; `facets`, `slices`: users and items in groups.
- `paired`: two evaluations on the same questions; `comparison_report`: several of them as a page.
- `thresholds`: limits that a slice must hold; `report`: the audit as a page.
"""
