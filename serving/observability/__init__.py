"""Metrics, logs and timings; the request log; imports nothing else of `serving`.

- `metrics`: Prometheus metrics of all workers; `logs`: formats of the log; `timings`: duration of each stage of a
  request.
- `request_log`: a sample of the answered requests, in files; `logged_requests`: reads them.
"""
