"""Cells to values: parsing of numbers, times, lists and text.

- `cells`: empty cells and limits on their size; `readings`: the reader of each feature kind.
- `numbers`, `times`, `lists`: numbers, dates and times, lists of values; `text`: the one tokeniser.
- `distinct`: each different value read once, and errors that name rows.
"""
