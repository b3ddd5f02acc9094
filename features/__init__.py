"""From raw tables to batches: everything that is known about users, items and what they did.

The room's files in the order of the flow. `config` and `errors`: strict settings, `DataError`. `tables`: `Interactions`,
`Catalog`, `Users`, checked at the edge. `datasets`: public sets and the generated shop. `sequences`: what each user did,
in order, and `Queries` about it. `split`: the protocols of evaluation. `schema` and `inference`: which features exist.
`vocabulary`, `text`: ids and words to rows. `featurizer`: fitted once, the same in training and in the server.
`batches`: jagged batches. `files`: writing that leaves nothing half-written.

Depends on no other room.
"""
