"""Public data sets in the formats of their publishers, written as our three tables.

`public` names them and writes the tables; `movielens`, `goodbooks` and `amazon` read one family each; `source` is a
folder or zip with the original files; `download` fetches them with their checksums.
"""
