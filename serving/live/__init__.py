"""The event log, and the state that follows it.

- `log`: records, and the interface of a log; `sqlite_log`, `postgres_log`: logs for one machine and for several;
  `open_log`: opens the log at an address.
- `follower`: `LiveRecommender`, a recommender that follows a log; `delta`: items and events that arrived after the
  index was built; `delta_index`: searches their vectors together with the index.
- `database_mirror`: writes live items to the vector database.
- `compaction`: merges the log into the tables.
"""
