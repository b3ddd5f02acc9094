"""Texts to vectors by models that were trained elsewhere, on this machine or behind an address.

- `encoder`: `PretrainedText`, what the featurizer holds: a model, its vectors kept on disk, turned so that the first
  numbers say most.
- `model`: what such a model must be able to do.
- `local`, `folder`: sentence-transformers models, in folders of plain files.
- `remote`: embeddings services that speak OpenAI's or Cohere's protocol; `policy`: which of them a bundle may reach.
- `graph`: a model in whole numbers of eight bits.
- `cache`: vectors that were made before.
"""
