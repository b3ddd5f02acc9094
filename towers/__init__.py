"""The model, and what it is on disk: what training makes and serving reads.

- `config`: `TowersConfig`.
- `embeddings`: torchrec collections from a `Schema`.
- `history`, `dropout`: the encoders of a user's past, and a part of them.
- `text_encoder`: pretrained models of texts that are trained with the towers.
- `sentences`: a bundle as sentence-transformers has its models, to be judged by its evaluators.
- `tower`, `two_tower`: features to unit vectors; `TwoTower`, the pair with its temperature.
- `one_user`: the user tower for one user at a time, without torch.
- `reranking`: a `Shortlist`, a `Deadline`, and the protocol `Reranker`; `ranker`: the folder of one in a bundle.
- `learned_ranker`: a network; `item_facts`, `rank_features`: what it reads of items, and of candidates.
- `text_rerankers`: a cross-encoder, and late interaction; `token_vectors`: what the latter compares.
- `precision`: in which numbers a device computes fastest.
- `bundle`: `ModelBundle`, the folder opened; `manifest`: what its manifest says.
- `sealed_folder`: `SealedFolder`, a folder whose manifest names every file, verified; `BundleError`.
- `private_copies`: `PrivateCopies`, what a server reads in the place of files that others may write to.
- `signature`: who made it; `trust`: what the operator trusts a bundle with.
- `graphs`: such models of a bundle as ONNX graphs.
- `cli`: the command `towers`.
- `process`, `quiet`: what is set before the heavy libraries start.
- `doctor`, `demo`, `export`: commands of their own; `commands`: `towers keygen` and `towers sign`.

Depends on `features` alone.
"""
