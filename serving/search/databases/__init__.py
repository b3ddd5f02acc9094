"""Search in a vector database: PostgreSQL with pgvector, or Qdrant.

A database is where candidates come from: it holds the vectors, the columns that requests filter by, and a seal. The
bundle keeps the vectors too, mapped into memory, and with them every candidate is checked and scored again, missing
ones are found by comparing all items, and requests are answered while the database is away.

- `settings`: what an operator says of a database; `open_database`: opens the one at an address.
- `database`: the interface of an engine, `VectorDatabase`, and the seal of a collection.
- `columns`: the cells that a database filters by, and conditions in their types.
- `database_search`: `DatabaseSearch`, the searcher over an engine.
- `pgvector`: PostgreSQL; `qdrant_server`: a Qdrant server; `qdrant_engine`: Qdrant's engine in the process;
  `qdrant_points`: what both have of Qdrant in common.
"""
