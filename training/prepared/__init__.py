"""Interactions that are larger than memory: checked in a stream, sorted on disk, read from there in training.

`towers prepare`, and `train` where the interactions are many, read the tables in blocks (`EventBlocks`), let DuckDB
sort them by shard, user and time within a limit of memory, and write what the model reads of them: one number for the
item and one for the time of each event. A shard is a share of the users, by a hash of their ids, and a range of each
array. The arrays are mapped into memory as the arrays of an ordinary `Sequences`, so that splits, batches and
evaluation are the same code for both, and go through them in blocks of users.

- `sorting`: `write_sorted`, from blocks to sorted arrays, with DuckDB.
- `folder`: `PreparedFolder`, the arrays with a manifest that seals them and says what they were made of.
- `prepare`: `prepared_tables`, which makes the folder, or opens one that fits.
"""
