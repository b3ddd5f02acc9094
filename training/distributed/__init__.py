"""Training in several processes, on one machine or many, started by `torchrun`.

- `launch`: this process among the others, as torchrun started it.
- `ranks`: `Ranks`, the `training.loop.processes.Processes` of several.
- `batch_division`: which users of a batch are whose.
- `sharded_tables`: embedding tables divided by torchrec's planner.
- `sharded_checkpoint`: checkpoints that any number of processes reads.
"""
