"""From a bundle to answers, over HTTP or as a file.

`index`: `ItemIndex`, the only place that knows FAISS. `retriever`: `Retriever`, users to `Recommendation`s. `offline`:
candidates for everybody. `app`, `api`: the service. `commands`: `towers index`, `towers recommend`, `towers serve`.

Depends on `towers` and `features`; does not know `training`.
"""
