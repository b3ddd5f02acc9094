"""Metrics, logs and timings; imports nothing else of `serving`.

- `metrics`: Prometheus metrics of all workers; `logs`: formats of the log; `timings`: duration of each stage of a
  request.
"""
