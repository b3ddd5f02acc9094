"""Inference of settings for `towers init`.

- `roles`: which column is the user, the item, the time; `column_names`: what column names say.
- `inference`: the kind of each column, columns that give the answer away, and run.toml.
"""
