"""The Python interface: what `import towers` offers, through the functions that the commands use.

- `train`: DataFrames or paths to a `Model`; `tables`: what is given as a table, as files.
- `model`: `Model` and `towers.open`; `service`: a model over HTTP, from Python.
- `requests`: arguments to the requests of the service; `answers`, `results`: its answers as tables.
- `pyfunc`: a bundle as a model of MLflow; `promotion`: whether a bundle may replace the one in service; `commands`: the
  flags of `towers promote`.
- `evaluations`: evaluations by slice, and next to each other; `printing`: whether a call prints.
- `errors`: errors without our frames; `parts`: types of results, and what parts of your own are made of.

The only part of this package that imports `training` and `serving`; nothing of ours imports it.
"""
