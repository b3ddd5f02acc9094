"""Serves recommendations from a bundle.

- `config`: `ServingConfig`, the operator's settings (serving.toml, environment, flags); `errors`: `NotReady`;
  `bounds`: limits of a request's content; `deadline`: the deadline of a request; `postgres`: connections to
  PostgreSQL.
- `observability`: metrics, logs and timings.
- `search`: finds the nearest items of vectors; `catalog`: ids, filters and popularity of items; `snapshot`: the folder
  `index/`.
- `recommend`: the core, from a request to a response; `live`: the event log, and the state that follows it.
- `jobs`: batch commands; `deploy`: deployment, rollback and hot reload of bundles.
- `http`: the service over HTTP; `server`: the production server.
- `commands`: `towers index`, `recommend`, `search`, `serve` and others.

Imports `towers` and `features`, not `training`. Each line imports only those above it.
"""
