"""Cells to values: what a cell says, and what the cells of a column have in common.

- `cells`: empty cells and limits on their size; `readings`: the reader of each feature kind.
- `numbers`, `times`, `lists`: numbers, dates and times, lists of values; `text`: the one tokeniser.
- `distinct`: each different value read once, and errors that name rows.
"""
