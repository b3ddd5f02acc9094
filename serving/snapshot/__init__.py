"""The folder `index/` of a bundle: everything that a server answers from.

- `snapshot`: `Snapshot`, today's tables as the model sees them; `manifest`: its `IndexManifest`; `encoding`: users to
  vectors;
  `precomputed`: recommendations found before anybody asks.
"""
