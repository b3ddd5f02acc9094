from __future__ import annotations

import numpy as np
import pandas as pd

from features.values.cells import text_of


def test_cells_are_short_texts():
    cells = [None, np.nan, 1.5, 1000.0, True, ["a", "b"], pd.Timestamp("2026-01-02 03:04"), "x" * 100, pd.NA]
    assert [text_of(cell) for cell in cells] == [
        "",
        "",
        "1.5",
        "1,000",
        "True",
        "a, b",
        "2026-01-02",
        "x" * 60 + "...",
        "",
    ]
