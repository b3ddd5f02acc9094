"""Columns to numbers, fitted once on the training data.

- `featurizer`: `Featurizer`, the encoders of all columns; `side_encoders`: those of items or of users.
- `sparse`: values to rows of embedding tables; `dense`: numbers and vectors; `text`: texts to vectors;
  `request_time`: hour, weekday and season of a request; `vocabulary`: known values of a column.
- `column_contract`: what each column held in training, and whether today's table still does; `profile`: how
  often which values occurred in training.
"""
