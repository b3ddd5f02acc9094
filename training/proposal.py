"""What `towers init` writes into `[towers]` and `[training]`: what measurement found best for such tables."""

from __future__ import annotations

from features.inference import Inference

SPARSE = 20
"""Interactions per user below which little is known of anybody, and a model must be kept from learning it by heart."""

ORDERED = """\
history = "transformer"  # the order of a user's interactions is known, and the newest matter most
blocks = 2               # layers of the transformer
heads = 2                # attention heads of each layer
"""
TIMED = """\
time_bias = true         # how long ago matters, too: times are known
"""
UNORDERED = """\
history = "mean"         # the order of a user's interactions is not known
"""

TRAINING = """\
[training]
seed = 0                 # same seed, same weights
epochs = 100             # at most; early stopping usually ends before
patience = 2             # epochs without a better validation N@10 until the learning rates are lowered
rate_cuts = 2            # how often they are lowered before training stops
batch_events = 2048      # interactions per step
negatives = "auto"       # all items up to 30,000 of them, a corrected sample beyond
track = true             # record the run in MLflow
"""


def render_model_settings(inference: Inference) -> str:
    """Return the `[towers]` and `[training]` parts of run.toml, commented."""
    per_user = inference.num_events / max(inference.num_users, 1)
    is_sparse = per_user < SPARSE
    few = f"{per_user:.0f} interactions per user {'are few' if is_sparse else 'are many'}"
    towers = [
        "[towers]\nwidth = 64               # numbers in a vector; memory and search cost grow with it\n",
        ORDERED if inference.is_ordered else UNORDERED,
        TIMED if inference.column("timestamp") is not None else "",
        f"dropout = {0.5 if is_sparse else 0.2}            # share of the numbers hidden while training; {few}\n",
    ]
    tables = "table_learning_rate = 0.05  # of the embedding tables, half the usual: little is known of each user\n"
    return f"{''.join(towers)}\n{TRAINING}{tables if is_sparse else ''}"
