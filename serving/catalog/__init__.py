"""Ids, filters and popularity of the items.

- `ids`: `IdMap`, external ids to rows and back; `filters`: `Filters`, which items a request allows; `popularity`: the
  items by their number of interactions.
"""
