"""Metrics, logs and timings; imports nothing else of `serving`.

- `metrics`: Prometheus metrics of all workers; `logs`: lines for machines and people; `timings`: how long each stage of
  a request took.
"""
