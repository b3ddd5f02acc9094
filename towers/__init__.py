"""The model: two towers, their bundle on disk, re-rankers and the command line.

- `config`: `TowersConfig`, the `[towers]` table of run.toml.
- `model`: the network; `bundle`: a trained model on disk, sealed and signed.
- `rerankers`: models that score candidates; `export`: ONNX and sentence-transformers.
- `cli`: the command `towers`; `process`: child processes, memory and priority; `warnings_filter`: warnings of
  libraries that users can do nothing about.

Imports `features`; does not know `training` or `serving`.
"""
