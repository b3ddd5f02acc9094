"""Writes what is generated in `docs/`: `python -m tests.documentation`."""

from __future__ import annotations

from tests.documentation.generated import GENERATED
from tests.documentation.pages import DOCS

for name, made in GENERATED.items():
    path, text = DOCS / name, made()
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
        print(f"{path}: written")
