"""Unit vectors to scored rows; knows no ids, tables or HTTP.

- `searcher`: what every search engine does; `conditions`: what a filter says, column by column.
- `results`: `Hits`, `AllowedItems` and `ExcludedPairs` rows, and the one order of scored rows.
- `index_config`: kinds of index and their parameters; `faiss_index`: `ItemIndex`, the only file that imports FAISS;
  `brute_force`: every item compared, on CPU or GPU; `partitions`: IVF lists for filtered searches.
- `levels`: one order of the items of each user, whatever is asked; `vectors`: vectors by row.
- `tuning`: which index suits a catalogue, by measurement; `micro_batching`: concurrent searches in one call.
"""
