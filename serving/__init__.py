"""A bundle to answers.

- `config`: `ServingConfig`, what the operator decides (`serving.toml`, environment, flags).
- `index`: `ItemIndex`, the search over the items' vectors; the only file that imports FAISS.
- `levels`: `Walk`, one order of the items for each user of an approximate index, of which every answer is a cut.
- `kinds`: `Plan`, which kind of index and with which parameters; `hits`: `Hits`, `Eligible` and `Excluded` rows.
- `tuning`: `tune`, which index suits a catalogue, by measurement.
- `exact`: `Exact`, every item compared, on a CPU or a GPU; `regions`: `Regions`, for filtered searches.
- `snapshot`: `Snapshot`, today's tables as the model sees them, in the bundle's folder `index/`; `seal`: its `Seal`.
- `shortlists`: `Shortlists`, what each known user gets, found before anybody asks.
- `folding`: the log of live writes into the tables.
- `ids`: `IdMap`, external ids to rows and back.
- `filters`: `Filters`, which items a request allows, by the columns of the catalogue.
- `wanted`: who is asked about (a `Person`) and what an answer must be (`Wanted`); `people`: them in the model's terms.
- `rules`: `Rules`, how an answer is arranged: variety, pins, boosts, limits; `reasons`: what spoke for an item.
- `reranking`: `Reranking`, the first of what was found in a better order, while there is time.
- `known`: `KnownUsers`, histories and vectors; `popularity`: `Popularity`, what those get of whom nothing is known.
- `queries`: words to a vector among those of the items.
- `retriever`: `Retriever`, who asks to `Answer` with its `Recommendation`s.
- `duplicates`: `find_duplicates`, what is nearly the same; `clusters`: `Clusters`, the catalogue in named groups.
- `store`: `Store`, the log of live writes; `postgres`: one for several machines.
- `live`: `Live`, a retriever that keeps up with it; `overlay`: `Overlay`, what arrived; `live_index`: `LiveIndex`.
- `offline`: candidates for everyone as a table.
- `source`: `Source`, the retriever of an application, exchanged when there is another; `registry`: `Alias`, a bundle
  behind an alias of MLflow's model registry.
- `app`: `create_app`; `api`: the JSON API; `answers`: what it answers; `short_way`: the same, mostly without Flask;
  `writes`: items and events over HTTP; `page`: the page for people; `problems`: the one shape of errors.
- `contract`: every name, type and limit of what is asked and answered over HTTP; `openapi`: the same for programs;
  `bounds`: how much a request may hold.
- `headers`: what browsers are told with every answer.
- `door`: what every request passes: an id, a turn, a note; `limits`: `Turns` and `Rates`; `keys`: who may ask.
- `bodies`: `Bodies`, request bodies received in bounded time and memory.
- `deadline`: how long a request may take, looked at in every stage.
- `metrics`: `Metrics` of all workers; `stages`: where a request's time goes; `logs`: lines for machines and people;
  `probes`: alive, ready, and what was counted.
- `batching`: `Batcher`, the work of several threads done together; `remembered`: users' vectors, for a while.
- `launch`, `server`: what starts, and the production server; `errors`: `NotReady`.
- `granian_server`, `gunicorn_worker`: what those two servers lack: slow senders cut off, workers replaced.
- `commands`: `towers index`, `recommend`, `search`, `serve`, ...; `operation`, `likeness`: what they do.
"""
