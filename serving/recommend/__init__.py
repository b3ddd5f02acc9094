"""The core: from a request to a response.

- `request`, `response`: their types; `recommender`: `Recommender`, which answers requests; `query_encoder`: encodes
  users as queries; `retrieval`: finds and ranks the items of queries.
- `state`: `ServingState`, all data that a request is answered from; `interfaces`: its interfaces of filters, users and
  popularity.
- `users`: encodes user profiles; `known_users`: users of the tables; `text_query`: encodes texts; `vector_cache`: a
  cache of users' vectors.
- `rules`: diversity, pins, boosts and limits; `reranking`: re-ranks candidates within a time budget; `explanations`:
  which items of the history contributed to a recommendation.
"""
