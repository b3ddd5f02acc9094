"""The service over HTTP.

- `app`: `create_app`; `middleware`: what every request passes, once; `routes`: the table of all endpoints; `router`:
  finds the route of a request; `service`: what handlers are given.
- `handlers`: requests for items; `live_routes`: items and events; `probes`: liveness, readiness, metrics; `web_page`:
  a page in HTML.
- `contract`: names, types and limits of requests and responses, the OpenAPI document, errors.
- `auth`: API keys; `key_file`: the file of API keys; `limits`: concurrency and rate limits; `bodies`: request bodies in
  bounded time and memory; `security_headers`: headers for browsers.
"""
