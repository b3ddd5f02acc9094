"""Columns to numbers, fitted once on the training data.

- `featurizer`: `Featurizer`, the encoders of all columns; `vocabulary`: known values of a column.
- `column_contract`: what each column held in training, and whether today's table still does.
"""
