"""Pictures of the documentation as SVG: the flow of commands, and the packages as their files import each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from html import escape

from tests.test_house import INTERFACE, SOURCES, TOP_PACKAGES, module_of, modules_imported

BOX, GAP_X, GAP_Y, GAP_Y_STACKED, MARGIN = 34, 16, 46, 12, 16
LETTER, SIDES = 7.9, 20
"""Width of a letter, and what a box has beside its text."""
_STYLE = """\
<style>
.page { fill: #ffffff; }
.box { fill: #eef2fb; stroke: #4a5fa5; }
.data { fill: #f6f4ea; stroke: #8a7b3a; }
.arrow { fill: none; stroke: #6b7280; }
.sometimes { stroke-dasharray: 5 4; }
text { fill: #1f2937; font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; text-anchor: middle; }
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">\
<path d="M0 0 8 4 0 8z" fill="#6b7280"/></marker></defs>
"""

Imports = Mapping[str, set[str]]
"""By the name of a folder or file: those of its siblings that it imports."""


@dataclass(frozen=True)
class Box:
    """A box of a picture, by its middle."""

    name: str
    x: float
    y: float
    kind: str = "box"

    @property
    def width(self) -> float:
        """Its width, from its text."""
        return LETTER * len(self.name) + SIDES

    def svg(self) -> str:
        """Return the box with its text."""
        return (
            f'<rect class="{self.kind}" x="{self.x - self.width / 2:.0f}" y="{self.y - BOX / 2:.0f}" '
            f'width="{self.width:.0f}" height="{BOX}" rx="{4 if self.kind == "box" else 16}"/>'
            f'<text x="{self.x:.0f}" y="{self.y + 4:.0f}">{escape(self.name)}</text>'
        )


def imports_within(package: str) -> Imports:
    """Return which of its folders and files import which, within a package."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        mine = module_of(path).split(".")
        if mine[0] == package and len(mine) > 1:
            own = found.setdefault(mine[1], set())
            others = (name.split(".") for name in modules_imported(path))
            own |= {other[1] for other in others if other[0] == package and len(other) > 1} - {mine[1]}
    return found


def imports_between() -> Imports:
    """Return which packages import which; the Python interface, which is above all, has a place of its own."""
    found: dict[str, set[str]] = {package: set() for package in (*TOP_PACKAGES, INTERFACE)}
    for path in SOURCES:
        own = _package_of(module_of(path))
        found[own] |= {_package_of(name) for name in modules_imported(path)} - {own}
    return found


def _package_of(module: str) -> str:
    is_interface = module == "towers" or f"{module}.".startswith(f"{INTERFACE}.")  # `import towers` is a part of it
    return INTERFACE if is_interface else module.partition(".")[0]


def levels(imports: Imports) -> list[list[str]]:
    """Return the names in rows: each imports names of lower rows only, the lowest row imports none."""
    height: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in height:
            height[name] = 1 + max(map(of, imports[name]), default=-1)
        return height[name]

    rows: list[list[str]] = [[] for _ in range(1 + max(map(of, imports)))]
    for name in sorted(imports):
        rows[height[name]].append(name)
    return rows


def stacked(imports: Imports) -> str:
    """Return the picture of a package: in rows, of which each imports lower ones only."""
    boxes = _in_rows(imports, GAP_Y_STACKED)
    return _picture(*_extent(boxes), [box.svg() for box in boxes.values()])


def connected(imports: Imports) -> str:
    """Return the same picture with an arrow for each import."""
    boxes = _in_rows(imports, GAP_Y)
    arrows = [
        _arrow((boxes[name].x, boxes[name].y + BOX / 2), (boxes[other].x, boxes[other].y - BOX / 2))
        for name, others in imports.items()
        for other in sorted(others)
    ]
    return _picture(*_extent(boxes), [*arrows, *(box.svg() for box in boxes.values())])


def _in_rows(imports: Imports, gap_y: float) -> dict[str, Box]:
    rows = [[Box(name, 0, 0) for name in row] for row in levels(imports)[::-1]]
    widths = [sum(box.width + GAP_X for box in row) - GAP_X for row in rows]
    boxes = {}
    for at, (row, width) in enumerate(zip(rows, widths, strict=True)):
        x, y = MARGIN + (max(widths) - width) / 2, MARGIN + BOX / 2 + at * (BOX + gap_y)
        for box in row:
            boxes[box.name] = Box(box.name, x + box.width / 2, y)
            x += box.width + GAP_X
    return boxes


def _extent(boxes: Mapping[str, Box]) -> tuple[float, float]:
    right, bottom = max(box.x + box.width / 2 for box in boxes.values()), max(box.y for box in boxes.values())
    return right + MARGIN, bottom + BOX / 2 + MARGIN


def _arrow(start: tuple[float, float], end: tuple[float, float], extra: str = "") -> str:
    (x, y), (to_x, to_y) = start, end
    bend = (to_y - y) / 2
    return (
        f'<path class="arrow{extra}" marker-end="url(#tip)" '
        f'd="M{x:.0f} {y:.0f}C{x:.0f} {y + bend:.0f} {to_x:.0f} {to_y - bend:.0f} {to_x:.0f} {to_y:.0f}"/>'
    )


def _picture(width: float, height: float, parts: Iterable[str]) -> str:
    size = f'width="{width:.0f}" height="{height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {width:.0f} {height:.0f}" role="img">'
    page = f'<rect class="page" {size}/>'
    return "\n".join([head, _STYLE.rstrip("\n"), page, *parts, "</svg>"]) + "\n"


# The flow from tables to answers: the boxes by their middle, and the arrows between them.
_STEPS = {
    "interactions": Box("interactions", 110, 34, "data"),
    "items": Box("items", 260, 34, "data"),
    "users": Box("users", 390, 34, "data"),
    "init": Box("towers init", 260, 114),
    "settings": Box("run.toml", 450, 114, "data"),
    "evaluate": Box("towers evaluate", 110, 204),
    "report": Box("report, ranks", 110, 284, "data"),
    "audit": Box("towers audit", 110, 364),
    "slices": Box("slices", 110, 444, "data"),
    "train": Box("towers train", 450, 204),
    "tracking": Box("MLflow", 690, 204, "data"),
    "bundle": Box("bundle: runs/run-1", 450, 284, "data"),
    "ranker": Box("towers train-ranker", 690, 284),
    "deploy": Box("towers deploy", 450, 364),
    "production": Box("runs/production", 450, 444, "data"),
    "index": Box("towers index", 690, 444),
    "writes": Box("items and events", 190, 534, "data"),
    "serve": Box("towers serve", 450, 534),
    "recommend": Box("towers recommend", 690, 534),
    "http": Box("answers over HTTP", 450, 614, "data"),
    "file": Box("candidates.parquet", 690, 614, "data"),
}
_ARROWS = (
    "interactions init, items init, users init sometimes, init settings, settings evaluate, evaluate report, "
    "report audit, audit slices, settings train, train tracking, train bundle, ranker bundle sometimes, bundle deploy, "
    "deploy production, index production, production serve, production recommend, writes serve sometimes, "
    "serve http, recommend file"
)


def flow() -> str:
    """Return the picture of the flow from tables to answers; what is optional is dashed."""
    arrows = []
    for words in map(str.split, _ARROWS.split(", ")):
        start, end = _STEPS[words[0]], _STEPS[words[1]]
        extra = " sometimes" if len(words) > 2 else ""
        if start.y == end.y:
            side = 1 if end.x > start.x else -1
            points = (start.x + side * start.width / 2, start.y), (end.x - side * end.width / 2, end.y)
            arrows.append(_arrow(*points, extra))
        else:
            arrows.append(_arrow((start.x, start.y + BOX / 2), (end.x, end.y - BOX / 2), extra))
    return _picture(810, 648, [*arrows, *(box.svg() for box in _STEPS.values())])


DIAGRAMS: dict[str, Callable[[], str]] = {
    "flow.svg": flow,
    "architecture/packages.svg": lambda: connected(imports_between()),
    **{f"architecture/{room}.svg": lambda room=room: stacked(imports_within(room)) for room in TOP_PACKAGES},
}
"""By their path in `docs/`: how each picture is made."""
