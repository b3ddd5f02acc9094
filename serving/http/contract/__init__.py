"""What is asked and answered over HTTP.

- `schemas`: every name, type and limit; `openapi`: the same for programs; `problems`: the one shape of errors.
"""
