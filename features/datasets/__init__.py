"""Public data sets in the formats of their publishers, written as our three tables.

- `public`: their names, and the tables of each.
- `movielens`, `goodbooks`, `amazon`: readers of one family each; `source`: a folder or zip with the original files;
  `download`: fetched with checksums.
"""
