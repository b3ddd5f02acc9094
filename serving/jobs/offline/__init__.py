"""Jobs over all users that are resumable, and may run on several machines.

- `parts`: a folder of Parquet files that a job fills, file by file, and what it was made of.
- `recommend_parts`: recommendations of all users into such a folder.
- `ray_engine`: work on several cores or machines, by Ray.
"""
