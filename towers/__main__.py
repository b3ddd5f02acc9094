"""`python -m towers`, the same as the command `towers`: what torchrun starts."""

from __future__ import annotations

import sys

from towers.cli import main

if __name__ == "__main__":
    sys.exit(main())
