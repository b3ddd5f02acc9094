"""What a training will take, before anything is trained: `towers plan`.

- `model_sizes`: bytes of each embedding table by process, as torchrec's planner divides them, and of all other weights.
- `trial`: a few seconds of real steps, timed, and the memory that they take.
- `memory`: what a process needs at most, and when.
- `remedies`: which setting to change to what, where that does not fit.
- `plan`: `Plan`, all of it as text or JSON.
"""
