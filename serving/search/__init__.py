"""Nearest-neighbour search: from unit vectors to scored rows, without ids, tables or HTTP.

- `searcher`: the interface of search engines; `conditions`: filters as conditions on columns.
- `results`: `Hits`, `AllowedItems` and `ExcludedPairs`, and the order of scored rows.
- `index_config`: index kinds and their parameters; `faiss_index`: `ItemIndex`, over FAISS; `inverted_lists`: lists
  that processes share; `brute_force`: exact search, on CPU or GPU; `top_scores`: the best of a matrix product;
  `partitions`: IVF lists for filtered searches.
- `levels`: one order of the items for each user, of which every result is a prefix; `vectors`: vectors by row, in
  single or half precision.
- `tuning`: chooses an index for a catalogue by measurement; `micro_batching`: combines concurrent searches.
- `databases`: search in pgvector and Qdrant.
"""
