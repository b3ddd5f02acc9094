"""A bundle to answers.

- `config`: `ServingConfig`, what the operator decides (`serving.toml`, environment, flags).
- `index`: `ItemIndex`, the search over the items' vectors; the only file that imports FAISS.
- `kinds`: `Plan`, which kind of index and with which parameters; `hits`: `Hits`, `Eligible` and `Excluded` rows.
- `tuning`: `tune`, which index suits a catalogue, by measurement.
- `exact`: `Exact`, every item compared, on a CPU or a GPU; `regions`: `Regions`, for filtered searches.
- `snapshot`: `Snapshot`, today's tables as the model sees them, in the bundle's folder `index/`; `seal`: its `Seal`.
- `ids`: `IdMap`, external ids to rows and back.
- `filters`: `Filters`, which items a request allows, by the columns of the catalogue.
- `wanted`: who is asked about (a `Person`) and what an answer must be (`Wanted`); `people`: them in the model's terms.
- `rules`: `Rules`, how an answer is arranged: variety, pins, boosts, limits; `reasons`: what spoke for an item.
- `retriever`: `Retriever`, who asks to `Answer` with its `Recommendation`s.
- `duplicates`: `find_duplicates`, what is nearly the same; `clusters`: `Clusters`, the catalogue in named groups.
- `offline`: candidates for everyone as a table.
- `app`: `create_app`; `api`: the JSON API; `page`: the page for people; `problems`: the one shape of errors.
- `contract`: every name, type and limit of what is asked and answered over HTTP; `openapi`: the same for programs.
- `headers`: what browsers are told with every answer.
- `door`: what every request passes: an id, a turn, a note; `limits`: `Turns` and `Rates`; `keys`: who may ask.
- `metrics`: `Metrics` of all workers; `stages`: where a request's time goes; `logs`: lines for machines and people;
  `probes`: alive, ready, and what was counted.
- `batching`: `Batcher`, the work of several threads done together; `remembered`: users' vectors, for a while.
- `server`: the production server; `errors`: `NotReady`.
- `commands`: `towers index`, `recommend`, `serve`, `duplicates`, `clusters`; `operation`, `likeness`: what they do.
"""
