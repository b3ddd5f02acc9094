"""Batch commands of an operator.

- `open`: opens the recommender of a bundle; `build_index`: `towers index`; `precompute`: precomputes recommendations.
- `database_index`: writes an index to a vector database.
- `recommend_all`: `towers recommend`; `search_text`: `towers search`.
- `latency`: times single recommendations.
- `duplicates`, `clusters`: find near-duplicates and clusters of items; `similarity_reports`: their commands.
- `drift`: `towers drift`; `request_drift`, `click_through`: its part about requests; `findings`: what it reports.
"""
