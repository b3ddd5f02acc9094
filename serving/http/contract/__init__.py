"""Names, types and limits of requests and responses over HTTP.

- `schemas`: the types; `requests`: reads a body or a query string as one of them; `openapi`: the OpenAPI document;
  `problems`: the one shape of errors.
"""
