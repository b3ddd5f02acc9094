"""Search for better settings, with Optuna; the only folder that imports it.

- `space`: which settings are searched, and their values; `study`: the folder of a tuning: trials, locks, checkpoints.
- `report`: what was found, as JSON, text and HTML; `charts`: its pictures.
"""
