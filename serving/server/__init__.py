"""The production server.

- `launch`: what `towers serve` checks and says before it starts; `server`: the master process and its workers; `told`:
  what it tells them; `follow_alias`: a process that follows an alias of the model registry.
- `granian_server`, `gunicorn_worker`: what those two servers lack.
"""
