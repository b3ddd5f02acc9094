"""The command line.

- `main`: the command `towers` and its error messages; `commands`: `towers keygen` and `towers sign`.
- `doctor`: checks the installation; `demo`: all commands on a generated shop.
"""
