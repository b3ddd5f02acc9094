"""What `towers init` writes into `[towers]` and `[training]`: what measurement found best for such tables."""

from __future__ import annotations

from features.inference import Inference

ORDERED = """\
[towers]
width = 64               # numbers in a vector; memory and search cost grow with it
history = "transformer"  # the order of a user's interactions is known, and the newest matter most
blocks = 2               # layers of the transformer
heads = 2                # attention heads of each layer
dropout = 0.2            # share of the numbers hidden inside the history encoder while training
"""

UNORDERED = """\
[towers]
width = 64               # numbers in a vector; memory and search cost grow with it
history = "mean"         # the order of a user's interactions is not known
dropout = 0.2            # share of the numbers hidden inside the history encoder while training
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
    return f"{ORDERED if inference.is_ordered else UNORDERED}\n{TRAINING}"
