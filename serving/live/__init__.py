"""The event log, and the state that follows it.

- `log`: what a record is and what every log can do; `sqlite_log`, `postgres_log`: for one machine, for several;
  `open_log`: the log at an address.
- `follower`: `LiveRecommender`, a recommender that follows a log; `delta`: what arrived since the index was made;
  `delta_index`: its vectors beside the index.
- `compaction`: the log into the tables.
"""
