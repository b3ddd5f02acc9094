"""The core: a request to a response.

- `request`: who is to be recommended something and what the response must be; `response`: what was recommended.
- `recommender`: `Recommender`, from the one to the other; `query_encoder`: users to queries; `retrieval`: queries to
  ranked items.
- `state`: `ServingState`, everything that a request is answered from; `interfaces`: what it needs of filters, users and
  popularity.
- `users`: user profiles in the model's terms; `known_users`: users of the tables; `text_query`: words to a vector;
  `vector_cache`: vectors of users, for a while.
- `rules`: diversity, pins, boosts and limits; `reranking`: candidates in a better order, within a budget of time;
  `explanations`: which items of the history contributed to a recommendation.
"""
