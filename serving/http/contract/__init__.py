"""The requests and responses of the HTTP API.

- `schemas`: names, types and limits; `requests`: reads a body or a query string as one of them; `openapi`: the OpenAPI
  document; `problems`: error responses.
"""
