"""The core: a request to a response.

- `request`: who is asked about and what the answer must be; `response`: what was recommended.
- `recommender`: `Recommender`, from the one to the other.
- `users`: described users in the model's terms; `known_users`: users of the tables; `text_query`: words to a vector;
  `vector_cache`: vectors of users, for a while.
- `rules`: diversity, pins, boosts and limits; `reranking`: candidates in a better order, within a budget of time;
  `explanations`: which items of the history spoke for a recommendation.
"""
