"""Every GPU path, run once and compared with the CPU: what `tests/gpu_check.sh` runs.

- `__main__`: the flags, and the steps in their order.
- `report`: runs steps, each in a process of its own, and keeps what they report.
- `lines`: a line of the report, and the comparisons that make one.
- `run`: what the steps share: device, sizes, folder, `towers` as a process.
- `machine`: installation, speed of the device, tables.
- `trainings`: `towers train`, `towers evaluate`, `torchrun`; single steps with all kinds of settings.
- `vectors`: encoders of items, users and texts, on both devices.
- `searches`: exact search, FAISS, `towers recommend`, the service.
"""
