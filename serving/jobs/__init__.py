"""Batch commands of an operator.

- `open`: opens the recommender of a bundle; `build_index`: `towers index`; `precompute`: precomputes recommendations.
- `recommend_all`: `towers recommend`; `search_text`: `towers search`.
- `duplicates`, `clusters`: find near-duplicates and clusters of items; `similarity_reports`: their commands.
- `drift`: `towers drift`.
"""
