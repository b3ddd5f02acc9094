"""The requests and responses of the HTTP API.

- `schemas`: every name, type and limit; `openapi`: the OpenAPI document; `problems`: error responses.
"""
