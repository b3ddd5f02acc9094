"""Interactions as sequences per user: histories, splits and batches.

- `ragged`: rows of different lengths, end to end; `sequences`: `Sequences`, the events of each user in order;
  `matrix`: the same as a sparse matrix; `cooccurrence`: which items come near which others; `trend`: recent popularity
  of items at any moment.
- `seen_items`: `SeenItems`, which items of a history may be recommended again.
- `split`: training, validation and test questions; `timeline`: the events of all users by time; `batches`: jagged
  batches for the model.
- `trained_events`: which events a model was trained on; `replay`: which an epoch of incremental training predicts.
"""
