"""A bundle to answers.

- `config`: `ServingConfig`, what the operator decides (`serving.toml`, environment, flags).
- `index`: `ItemIndex`, the search over the items' vectors; the only file that imports FAISS.
- `kinds`: `Plan`, which kind of index and with which parameters; `hits`: `Hits`, `Eligible` and `Excluded` rows.
- `tuning`: `tune`, which index suits a catalogue, by measurement.
- `exact`: `Exact`, every item compared, on a CPU or a GPU; `regions`: `Regions`, for filtered searches.
- `snapshot`: `Snapshot`, today's tables as the model sees them, in the bundle's folder `index/`; `seal`: its `Seal`.
- `ids`: `IdMap`, external ids to rows and back.
- `filters`: `Filters`, which items a request allows, by the columns of the catalogue.
- `retriever`: `Retriever`, who asks to `Answer` with its `Recommendation`s.
- `offline`: candidates for everyone as a table.
- `app`: `create_app`; `api`: the JSON API; `page`: the page for people; `problems`: the one shape of errors.
- `server`: the production server; `errors`: `NotReady`.
- `commands`: `towers index`, `recommend`, `serve`; `operation`: what they do.
"""
