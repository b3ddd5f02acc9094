"""From a bundle to answers.

- `config`: `ServingConfig`, what the operator decides (serving.toml, environment, flags); `errors`: `NotReady`;
  `bounds`: how much a request may hold; `deadline`: how long a request may take.
- `observability`: metrics, logs and timings.
- `search`: unit vectors to scored rows; `catalog`: ids, filters and popularity of items; `snapshot`: the folder
  `index/`.
- `recommend`: the core, a request to a response; `live`: the event log, and the state that follows it.
- `jobs`: what an operator runs once; `deploy`: which bundle is served, and changing it.
- `http`: the service over HTTP; `server`: the production server.
- `commands`: `towers index`, `recommend`, `search`, `serve` and others.

Imports `towers` and `features`; does not know `training`. Each line imports those above it only.
"""
