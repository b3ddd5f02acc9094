"""Tables to tensors: everything that turns what a shop knows into numbers that a model reads.

- `config`: `FeaturesConfig`, the `[features]` table of run.toml; `schema`: the columns and kinds that a model was
  trained with; `feature_kinds`: all that depends on the kind of a feature.
- `tables`: files to checked tables; `values`: cells to values; `columns`: a column as its feature reads it; `spelling`:
  one spelling for the values of a column; `sequences`: histories, splits and batches.
- `featurizer`: columns to numbers, fitted once; `encoders`: pretrained text models.
- `inference`: which columns and kinds `towers init` proposes.
- `datasets`: public data sets; `shop`: a generated shop with known truth.
- `settings`: strict tables of settings; `errors`: `DataError`; `messages`: lists and names in messages; `redaction`:
  passwords out of messages.
- `locations`: where tables lie, here or in an object store.
- `ids`: columns of ids; `files`: atomic writes, links, digests; `parquet`: Parquet files of bounded size.
- `commands`: `towers dataset`.

Imports none of the other three packages.
"""
