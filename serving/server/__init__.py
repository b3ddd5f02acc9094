"""The production server.

- `launch`: the checks and notes of `towers serve` before it starts; `server`: the master process and its workers;
  `instructions`: what the master passes to its workers; `follow_alias`: a process that follows an alias of the model
  registry.
- `granian_server`, `gunicorn_worker`: additions to those two servers.
"""
