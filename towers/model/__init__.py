"""The network: features of users and items to unit vectors of one space.

- `two_tower`: `TwoTower`, both towers and their similarity; `feature_tower`: one tower, over columns.
- `history`: encoders of a user's history; `embeddings`: embedding tables; `text_encoder`: a transformer that is trained
  along; `dropout`: regularisation; `trend_head`: recent popularity in the score.
- `numpy_user_tower`: one user's vector without torch's overhead; `precision`: mixed precision.
"""
