"""Where a recommender fails: metrics by slice of users and items.

- `ranks`: what an evaluation keeps for each question; `facets`, `slices`: users and items in groups.
- `thresholds`: limits that a slice must hold; `report`: the audit as a page.
"""
