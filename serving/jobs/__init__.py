"""What an operator runs once.

- `open`: the recommender of a bundle; `build_index`: `towers index`; `precompute`: the best items of each user.
- `recommend_all`: `towers recommend`; `search_text`: `towers search`.
- `duplicates`, `clusters`: near duplicates and groups of items; `similarity_reports`: their commands.
"""
