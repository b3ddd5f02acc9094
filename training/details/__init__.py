"""What a report shows beyond the metrics, collected from a run.

- `figures`: learning curves, slices, popularity, ranks, scores; `examples`: people, near misses and failures;
  `item_map`: the items in the plane.
- `data_profile`: the tables; `origin`: the run and its settings.
- `collect`: all of it.
"""
