"""Conditions for CI: `slice:language gap > 0.1` ends `towers audit` with exit status 3 if it holds.

    [slice:FACET | slice:FACET=VALUE | slice:*] MEASURE < | <= | > | >= NUMBER

Without `slice:` the whole is meant. The measures are `recall@10`, `recall@50`, `gap@10` and `gap@50` (by how much a
slice is below the whole; `gap` is `gap@50`), and `exposure@10` and `exposure@50`, the share of what is shown divided by
the share of the catalogue. A slice with fewer queries than `--min-support` never fails: its numbers are noise.
"""

from __future__ import annotations

import difflib
import operator
import re
from dataclasses import dataclass

import pandas as pd

from features.errors import DataError
from training.audit.slices import CUTOFFS, WHOLE

EXAMPLE = "slice:language gap > 0.1"

_FORM = re.compile(
    r"\s*(?:slice:(?P<facet>[^=]+?)(?:=(?P<value>.*?))?\s+)?(?P<measure>[a-z]+(?:@\d+)?)\s*"
    r"(?P<operator>[<>]=?)\s*(?P<bound>[-+]?\d*\.?\d+)\s*"
)
_OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_SHORT = {"gap": "gap@50", "recall": "recall@50", "exposure": "exposure@50"}


@dataclass(frozen=True)
class Checked:
    """A condition, and the slices for which it holds, so that it fails.

    Attributes:
        text: As it was given.
        failures: One row per failing slice, with the number in the column `found`.
    """

    text: str
    failures: pd.DataFrame

    @property
    def passes(self) -> bool:
        """Whether there is no such slice."""
        return not len(self.failures)


@dataclass(frozen=True)
class Threshold:
    """One line of what must not be.

    Attributes:
        text: As it was given.
        facet: Whose slices are looked at; `*` for those of every facet, None for the whole.
        value: The one slice that is; None for each.
        measure: `recall@50` and so on.
        operator: `<`, `<=`, `>` or `>=`.
        bound: What the measure is compared with.
    """

    text: str
    facet: str | None
    value: str | None
    measure: str
    operator: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Return the gate that a line describes.

        Raises:
            DataError: It is not such a line.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise DataError(f"--fail-if {text!r}: expected something like {EXAMPLE!r}; see towers audit --help")
        measure = _SHORT.get(found["measure"], found["measure"])
        known = [f"{name}@{k}" for name in ("recall", "gap", "exposure") for k in CUTOFFS]
        if measure not in known:
            raise DataError(f"--fail-if {text!r}: there is no {found['measure']!r}; there are {', '.join(known)}")
        if found["facet"] is None and not measure.startswith("recall"):
            raise DataError(f"--fail-if {text!r}: the whole has no {measure}; say of which slices, as in {EXAMPLE!r}")
        return cls(text, found["facet"], found["value"], measure, found["operator"], float(found["bound"]))

    def check(self, slices: pd.DataFrame, min_support: int) -> Checked:
        """Return whether slices pass; arguments and errors as of `failures`."""
        return Checked(self.text, self.failures(slices, min_support))

    def failures(self, slices: pd.DataFrame, min_support: int) -> pd.DataFrame:
        """Return the slices that are as they must not be, with the number in the column `found`.

        Args:
            slices: As `slicing.slice_metrics` gives them.
            min_support: Questions that a slice needs to fail.

        Raises:
            DataError: There is no such facet, or no such value.
        """
        looked_at = self._chosen(slices)
        numbers = self._numbers(looked_at)
        fails = _OPERATORS[self.operator](numbers, self.bound) & (looked_at["questions"] >= min_support)
        failing: pd.DataFrame = looked_at.assign(found=numbers)[fails.to_numpy(dtype=bool)]
        return failing

    def _chosen(self, slices: pd.DataFrame) -> pd.DataFrame:
        if self.facet is None:
            return slices[slices["facet"] == WHOLE]
        apart = slices[slices["facet"] != WHOLE]
        chosen = apart if self.facet == "*" else apart[apart["facet"] == self.facet]
        if not len(chosen):
            raise self._unknown("facet", self.facet, apart["facet"])
        if self.value is None:
            return chosen
        one = chosen[chosen["value"] == self.value]
        if not len(one):
            raise self._unknown(self.facet, self.value, chosen["value"])
        return one

    def _numbers(self, slices: pd.DataFrame) -> pd.Series:
        column = self.measure.replace("@", "_at_")
        if self.measure.startswith("exposure"):
            return slices[column] / slices["catalogue_share"]
        return slices[column]

    def _unknown(self, what: str, name: str, known: pd.Series) -> DataError:
        names = [str(one) for one in known.unique()]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, names[:20]))}"
        return DataError(f"--fail-if {self.text!r}: there is no {what} {name!r}; {hint}")
