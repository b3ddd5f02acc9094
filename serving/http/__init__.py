"""The service over HTTP.

- `app`: `create_app`; `middleware`: the steps that every request goes through; `routes`: the table of all endpoints;
  `router`: finds the route of a request; `service`: the arguments of handlers.
- `recommend_handler`: recommendations, similar items and text search; `live_routes`: writes of items and events;
  `probes`: liveness, readiness, metrics; `page`: the web page.
- `contract`: names, types and limits of requests and responses, the OpenAPI document, errors.
- `auth`: checks API keys; `key_file`: the file of API keys; `limits`: concurrency and rate limits; `bodies`: reads
  request bodies in bounded time and memory; `security_headers`: headers for browsers.
"""
