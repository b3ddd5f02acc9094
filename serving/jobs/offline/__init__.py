"""Jobs over all users or items that may run on several machines.

- `parts`: a folder of Parquet files that a job fills, file by file, and what it was made of.
- `recommend_parts`: recommendations of all users into such a folder.
- `encode_items`: vectors of a catalogue, for `towers index`.
- `ray_engine`: work on several cores or machines, by Ray; `workers`: what workers are given, and what they check.
"""
