"""The tables of licences: those of the libraries, as installed, and the terms of the public data sets."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, metadata

from packaging.requirements import Requirement

from features.datasets.public import PUBLIC_SETS
from tests.documentation.pages import DOCS, ROOT, in_table

PAGE = "reference/compatibility.md"
_IN_PLACE_OF = {"fbgemm-gpu": "fbgemm-gpu-cpu", "faiss-cpu": "faiss-gpu"}
"""The build of a library that is installed on the other kind of machine: the same source, so the same licence."""
_LONGEST = 160
"""Characters; where the metadata have the text of a licence in the place of its name, the classifiers name it."""
_CLASSIFIER = "License :: "
_SAME = {
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "BSD-3": "BSD-3-Clause",
    "MIT License": "MIT",
}
"""Older ways to write the name of a licence."""


def licences_page() -> str:
    """Return the page with its tables as they should be."""
    text = (DOCS / PAGE).read_text(encoding="utf-8")
    for name, rows in (("libraries", _of_libraries()), ("data sets", _of_data_sets())):
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        assert end, f"{PAGE} has no place for the table of {name}"
        text = "".join([before, begin, "\n", "\n".join(rows), "\n\n", end, after])
    return text


def _of_libraries() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {"always": project["dependencies"], **project["optional-dependencies"]}
    extras: dict[str, list[str]] = {}
    for extra, requirements in wanted.items():
        for name in (Requirement(one).name for one in requirements):
            extras.setdefault(name, []).append(extra)
    by_licence: dict[str, list[str]] = {}
    for name, needed in sorted(extras.items()):
        shown = f"`{name}`" if "always" in needed else f"`{name}` ({', '.join(needed)})"
        by_licence.setdefault(licence_of(name), []).append(shown)
    return [
        "| licence | libraries, with the extra in brackets that needs them |",
        "|---|---|",
        *(f"| {in_table(licence)} | {', '.join(names)} |" for licence, names in sorted(by_licence.items())),
    ]


def licence_of(name: str) -> str:
    """Return the licence that an installed library names in its metadata."""
    try:
        found = metadata(name)
    except PackageNotFoundError:
        found = metadata(_IN_PLACE_OF[name])
    expression, text = ((found.get_all(field) or [""])[0] for field in ("License-Expression", "License"))
    named = expression or " ".join(text.split())
    if not named or len(named) > _LONGEST:
        classes = [one for one in found.get_all("Classifier") or [] if one.startswith(_CLASSIFIER)]
        named = "; ".join(one.rpartition(" :: ")[2] for one in classes) or "none named"
    return _SAME.get(named, named)


def _of_data_sets() -> list[str]:
    terms: dict[str, list[str]] = {}
    for public in PUBLIC_SETS.values():
        name = f"`{public.family or public.name}`"
        names = terms.setdefault(public.terms, [])
        if name not in names:
            names.append(name)
    return [
        "| data set | licence or terms of its publisher |",
        "|---|---|",
        *(f"| {', '.join(names)} | {licence} |" for licence, names in terms.items()),
    ]
