"""`python -m towers`, the same as the command `towers`: what torchrun starts."""

from __future__ import annotations

import os
import sys

# `python -m` looks for modules in the working folder first, where tables lie and not code, unless ours does.
if not sys.flags.safe_path and sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(__file__)):  # noqa: PTH109, PTH120
    del sys.path[0]

from towers.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
