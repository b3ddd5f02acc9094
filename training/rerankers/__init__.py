"""Training of re-rankers.

- `candidates`: candidates of held-out questions; `examples`: `RankingDataset`, candidates with their answers.
- `learned`: fits the learned ranker; `text`: fits and tries cross-encoders and late interaction.
"""
