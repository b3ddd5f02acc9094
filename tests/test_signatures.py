"""The checks of signatures under which all other tests run are there, and refuse what they should."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
import torch

from features.files import sha256
from features.sequences.ragged import Ragged, offsets_of
from features.sequences.sequences import Sequences
from features.shop.choices import moments_of
from serving.config import ServingConfig
from serving.search.top_scores import scores_of
from serving.server.server import address_of
from tests.signatures import EVERY, FIRST

ROWS = np.arange(3)
VISITS = Sequences(ROWS[:1], ROWS[[0, 2]], ROWS[:2], times=None, is_ordered=True)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        pytest.param(lambda: sha256(3), "violates type hint", id="a function"),
        pytest.param(lambda: address_of("here"), f"violates type hint .*{ServingConfig.__name__}", id="a class"),
        pytest.param(lambda: Ragged.empty("3"), "violates type hint", id="a class method that returns its own class"),
        pytest.param(lambda: Ragged(ROWS / 2, ROWS), "offsets", id="a dataclass"),
        pytest.param(lambda: scores_of(torch.zeros(3), torch.zeros(3, 3), None, None), "queries", id="a shape"),
        pytest.param(lambda: moments_of(VISITS, ROWS, ROWS[:2]), "events", id="shapes that do not fit together"),
    ],
)
def test_what_does_not_fit_a_signature_is_refused(call, words):
    with pytest.raises(TypeError, match=f"(?s){words}"):
        call()


def test_many_calls_are_checked_now_and_then():
    for _ in range(FIRST):
        offsets_of(ROWS)
    refused = []
    for call in range(EVERY):
        with suppress(ValueError):  # what numpy says where nothing is checked
            try:
                offsets_of(ROWS[None])
            except TypeError:
                refused.append(call)
    assert len(refused) == 1
