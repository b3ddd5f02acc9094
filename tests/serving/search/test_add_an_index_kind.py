"""An index kind is added as CONTRIBUTING says: here `sq6`, to a copy of the package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
EDITS = {
    "serving/search/index_config.py": [
        ('"sq8", "sq4", ', '"sq8", "sq6", "sq4", '),
        ('    "sq4": "4-bit', '    "sq6": "6-bit scalar quantisation of all items",\n    "sq4": "4-bit'),
        ('"sq8": 2, "sq4": 8, ', '"sq8": 2, "sq6": 4, "sq4": 8, '),
        (
            '        case "sq8":\n',
            """        case "sq6":
            return IndexConfig(kind=kind, bits=6, oversampling=oversampling)
        case "sq8":
""",
        ),
    ],
    "serving/search/faiss_index.py": [
        (
            '        case "sq4":\n',
            """        case "sq6":
            return faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_6bit, metric)
        case "sq4":
""",
        ),
        ('("hnsw", "pq", "sq8", "sq4")', '("hnsw", "pq", "sq8", "sq6", "sq4")'),
    ],
}
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from serving.search.faiss_index import ItemIndex
from serving.search.index_config import DESCRIPTIONS, candidates
from serving.search.tuning import tune

vectors = np.random.default_rng(0).standard_normal((2_000, 16)).astype(np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
assert "sq6" in {plan.kind for plan in candidates(2_000, 16)} and "sq6" in DESCRIPTIONS
index = ItemIndex.build(vectors, "sq6")
index.save(Path(sys.argv[1]))
loaded = ItemIndex.load(Path(sys.argv[1]), vectors, index.plan)
exact = ItemIndex.build(vectors).search(vectors[:50], 10)
for found in (index.search(vectors[:50], 10), loaded.search(vectors[:50], 10)):
    assert np.mean([np.isin(row, true).mean() for row, true in zip(found.rows, exact.rows)]) > 0.95
assert tune(vectors, vectors[:90], 0.9, kind="sq6").chosen.plan.kind == "sq6"
"""


def test_an_index_kind_is_added_as_contributing_says(tmp_path):
    shutil.copytree(ROOT / "serving", tmp_path / "serving", ignore=shutil.ignore_patterns("__pycache__"))
    for name, edits in EDITS.items():
        path = tmp_path / name
        text = path.read_text(encoding="utf-8")
        for before, after in edits:
            assert text.count(before) == 1, f"{name}: {before}"
            text = text.replace(before, after)
        path.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, tmp_path / "index"],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_contributing_names_the_files_and_places_of_an_index_kind():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## Add an index kind\n")[1].split("\n## ")[0]
    files = re.findall(r"`(serving/[\w/]+\.py)`", section)
    assert set(EDITS) == set(files)
    sources = "".join((ROOT / name).read_text(encoding="utf-8") for name in files)
    for name in re.findall(r"`(_?[A-Za-z_]+)`", section):
        assert re.search(rf"\b{name}\b", sources), name
