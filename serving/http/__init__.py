"""The service over HTTP.

- `app`: `create_app`; `middleware`: what every request passes: id, turn, log line; `fast_path`: simple requests without
  Flask.
- `routes`: the JSON API; `live_routes`: items and events; `handlers`: what both ways answer; `web_page`: the page for
  people; `probes`: alive, ready, metrics.
- `contract`: names, types and limits of requests and responses, the OpenAPI document, errors.
- `auth`: API keys; `key_file`: where they are kept; `limits`: concurrency and rate limits; `bodies`: request bodies in
  bounded time and memory; `security_headers`, `version_headers`: headers of every answer.
"""
