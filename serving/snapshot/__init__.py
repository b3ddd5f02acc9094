"""The folder `index/` of a bundle: all data that a server needs besides the model.

- `snapshot`: `Snapshot`, the tables encoded by the model; `manifest`: its `IndexManifest`; `encoding`: encodes users;
  `precomputed`: precomputed recommendations of known users; `collection`: its counterpart in a vector database.
"""
