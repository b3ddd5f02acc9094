"""Models that score the candidates of the retriever.

- `reranker`: the protocol; `kinds`: the table of kinds; `manifest`: the folder `ranker/` of a bundle; `opening`: opens
  it, whatever the kind.
- `learned`: a small network; `candidate_features`: what it reads; `item_statistics`: counts, recency and trends of
  items.
- `text`: cross-encoder and late interaction; `token_embeddings`: the vectors of tokens.
"""
