"""Items as a request names them.

- `ids`: `IdMap`, external ids to rows and back; `filters`: `Filters`, which items a request allows; `popularity`: the
  items by their number of interactions.
"""
