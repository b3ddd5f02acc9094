"""From raw tables to batches: everything that is known about users, items and what they did.

- `config`, `errors`: strict settings; `DataError`, what the user can mend; `messages`: what such errors quote.
- `redaction`: text without the secrets in it.
- `documents`: a folder of texts as a table of passages.
- `distinct`, `numbers`, `times`, `lists`, `readings`: what text cells say, decided by the column and kept.
- `table_parts`: which files are one table: a file, a folder, a pattern.
- `table_files`, `tables`: CSV and Parquet to `Interactions`, `Catalog` and `Users`, checked at the edge.
- `datasets`, `shop`: public sets and the generated shop, as such tables.
- `sequences`: `Sequences`, what each user did, in order, and `Queries`, what is asked about it.
- `split`: the protocols of evaluation.
- `column_names`, `roles`: which column says who, what and when.
- `schema`, `inference`: which features exist, and what `towers init` proposes.
- `vocabulary`, `text`: ids and words to rows.
- `encoders`: texts to the vectors of pretrained models.
- `spelling`, `cells`: what stands in a column, as values, numbers or texts, spelt in one way.
- `featurizer`, `batches`: fitted once, the same in training and in the server; jagged batches.
- `column_contract`: what training saw in each column, and what other tables are held to.
- `rows`, `additions`: rows as JSON has them to a table like another; tables with what came after them.
- `parquet`: Parquet files whose sizes are looked at before they are read.
- `files`: writing that leaves nothing half-written, and links that move.
- `commands`: `towers dataset`.

Depends on no other room.
"""
