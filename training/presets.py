"""Ready-made sizes of the model, each a handful of settings: `towers train run.toml --preset large`.

A preset stands between run.toml and `--set`: it replaces what the file says, and `--set` replaces what it says. It
decides sizes and how long is trained; what the model reads and how it reads it is left to run.toml.
"""

from __future__ import annotations

from typing import Literal, get_args

Preset = Literal["small", "base", "large"]
PRESETS = get_args(Preset)


def preset_settings(preset: Preset | None) -> tuple[str, ...]:
    """Return the settings of a preset, `table.key=value` each; none for None."""
    match preset:
        case None:
            return ()
        case "small":
            return ("towers.embedding_dim=32", "towers.num_layers=1", "towers.num_heads=1", "towers.dropout=0.1")
        case "base":
            return ("towers.embedding_dim=64", "towers.num_layers=2", "towers.num_heads=2", "towers.dropout=0.2")
        case "large":
            return ("towers.embedding_dim=128", "towers.num_layers=4", "towers.num_heads=4", "towers.dropout=0.3")
