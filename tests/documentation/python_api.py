"""The reference of the Python interface, from the definitions and docstrings of what `towers` offers."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from itertools import pairwise
from textwrap import dedent

import towers
import towers.api
from tests.documentation.pages import in_table

_INTRODUCTION = """\
# Python

What `import towers` offers; the [guide](../guides/python.md) has a program for each. The import is quick and loads
neither torch nor the web server; a name is loaded when it is first used.
"""
_SECTIONS = {
    "Functions": ("train", "open", "audit", "compare"),
    "The model": ("Model",),
    "Results": ("Recommendations", "EvaluationReport", "AuditReport", "ComparisonReport", "DriftReport"),
    "Errors": ("DataError", "BundleError"),
    "Parts of your own": (
        "LOSSES",
        "Loss",
        "HISTORY_ENCODERS",
        "HistoryEncoder",
        "Reranker",
        "Shortlist",
        "Searcher",
        "Hits",
        "AllowedItems",
    ),
}
_INTERNAL = {
    "Recommendations": {"of"},
    "AuditReport": {"of", "headline", "metrics", "advice"},
    "ComparisonReport": {"of"},
    "EvaluationReport": {"of", "from_dict", "to_dict", "read", "headline", "metrics"},
    "Hits": {"after", "first", "share_of"},
}
"""Public members that programs do not need."""
_CALLED = {"__call__": "{0}", "__len__": "len({0})"}
"""How methods with names of Python's own are called."""
_PASSED = {
    "Negatives": "training.loop.negatives",
    "MaskedPairs": "training.loop.negatives",
    "Moments": "towers.model.history",
    "Deadline": "towers.rerankers.reranker",
    "Ragged": "features.sequences.ragged",
}
"""Types of arguments of such parts, of which only the attributes are shown."""
_HEADS = {"Args": "Arguments"}
_WIDTH = 100
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Example):\n", re.MULTILINE)
_ENTRY = re.compile(r"^(\**\w+): (.*(?:\n +.*)*)", re.MULTILINE)


def python_page() -> str:
    """Return the page."""
    parts = [_INTRODUCTION]
    for heading, names in _SECTIONS.items():
        parts.append(f"## {heading}\n")
        for name in names:
            parts += _of(name)
    parts.append("## Types of arguments\n\n| name | type | meaning |\n|---|---|---|\n" + "\n".join(_aliases()) + "\n")
    parts.append("These objects are passed to parts of your own:\n")
    for name, module in _PASSED.items():
        parts += [f"### {name}\n", *_described(getattr(importlib.import_module(module), name).__doc__)]
    return "\n".join(parts)


def documented() -> list[str]:
    """Return the names of `towers` that have a place on the page."""
    return [name for names in _SECTIONS.values() for name in names]


def _of(name: str) -> Iterator[str]:
    """Yield the parts about a public name of `towers`."""
    value = getattr(towers, name)
    if isinstance(value, dict):
        yield f"### towers.{name}\n"
        yield f"{_doc_of_constant(towers._PLACES[name], name)}\n"
        return
    node = ast.parse(dedent(inspect.getsource(value))).body[0]
    if isinstance(node, ast.FunctionDef):
        yield from _of_function(f"### towers.{name}", f"towers.{name}", node)
    elif isinstance(node, ast.ClassDef):
        yield f"### towers.{name}\n"
        yield from _described(ast.get_docstring(node))
        members = [one for one in node.body if isinstance(one, ast.FunctionDef) and _is_shown(node, one)]
        properties = [one for one in members if _is_property(one)]
        if properties:
            yield "| property | type | meaning |\n|---|---|---|"
            yield "\n".join(_property_row(one) for one in properties) + "\n"
        for one in members:
            if one not in properties:
                called = _CALLED.get(one.name, "{0}.{1}").format(name, one.name)
                yield from _of_function(f"#### {called}", called, one)


def _of_function(heading: str, called: str, node: ast.FunctionDef) -> Iterator[str]:
    yield f"{heading}\n"
    yield f"```py\n{_signature(called, node)}\n```\n"
    yield from _described(ast.get_docstring(node))


def _is_shown(owner: ast.ClassDef, node: ast.FunctionDef) -> bool:
    """Whether a member is described: a public one, and of a protocol also those that Python calls."""
    is_protocol = any(ast.unparse(base) == "Protocol" for base in owner.bases)
    is_public = not node.name.startswith("_") or (is_protocol and node.name in _CALLED)
    return is_public and node.name not in _INTERNAL.get(owner.name, ())


def _is_property(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(one) in ("property", "cached_property") for one in node.decorator_list)


def _property_row(node: ast.FunctionDef) -> str:
    text = " ".join((ast.get_docstring(node) or "").split())
    kind = in_table(f"`{_type(node.returns)}`") if node.returns else ""
    return f"| `{node.name}` | {kind} | {in_table(text)} |"


def _signature(name: str, node: ast.FunctionDef) -> str:
    """Return a definition as it is called, one line for each argument if it is long."""
    given = node.args
    if given.args and given.args[0].arg in ("self", "cls"):
        given.args.pop(0)
    required = len(given.args) - len(given.defaults)
    shown = [
        _argument(one, given.defaults[at - required] if at >= required else None) for at, one in enumerate(given.args)
    ]
    if given.vararg:
        shown.append(f"*{_argument(given.vararg, None)}")
    elif given.kwonlyargs:
        shown.append("*")
    shown += [_argument(one, default) for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    if given.kwarg:
        shown.append(f"**{_argument(given.kwarg, None)}")
    result = f" -> {_type(node.returns)}" if node.returns else ""
    line = f"{name}({', '.join(shown)}){result}"
    return line if len(line) <= _WIDTH else f"{name}(\n" + "".join(f"    {one},\n" for one in shown) + f"){result}"


def _argument(node: ast.arg, default: ast.expr | None) -> str:
    text = f"{node.arg}: {_type(node.annotation)}" if node.annotation else node.arg
    return text if default is None else f"{text} = {_type(default)}"


def _type(node: ast.expr) -> str:
    return ast.unparse(node).replace("'", '"')


def _described(doc: str | None) -> Iterator[str]:
    """Yield a docstring as Markdown: its text, lists of arguments and errors, and examples."""
    text, *sections = _SECTION.split(inspect.cleandoc(doc or ""))
    yield f"{text.strip()}\n"
    for name, content in zip(sections[::2], sections[1::2], strict=True):
        body = dedent(content).strip()
        if name == "Example":
            yield f"```pycon\n{body}\n```\n"
        elif name == "Returns":
            yield f"**Returns.** {body}\n"
        else:
            entries = [f"- `{entry}`: {' '.join(meaning.split())}" for entry, meaning in _ENTRY.findall(body)]
            yield "\n".join([f"**{_HEADS.get(name, name)}.**\n", *entries]) + "\n"


def _aliases() -> Iterator[str]:
    """Yield a row for each type that has a name of its own in the signatures."""
    for module in pkgutil.iter_modules(towers.api.__path__, "towers.api."):
        for node, doc in pairwise(_body(module.name)):
            if isinstance(node, ast.AnnAssign) and _type(node.annotation) == "TypeAlias":
                cells = f"`{ast.unparse(node.target)}`", f"`{_type(node.value)}`", _text(doc)
                yield f"| {' | '.join(map(in_table, cells))} |"


def _doc_of_constant(module: str, name: str) -> str:
    """Return the docstring below a constant, in the module that it is imported from."""
    body = _body(module)
    for node, doc in pairwise(body):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            return _text(doc)
    source = next(
        node.module
        for node in body
        if isinstance(node, ast.ImportFrom) and node.module and any(one.asname == name for one in node.names)
    )
    return _doc_of_constant(source, name)


def _body(module: str) -> list[ast.stmt]:
    return ast.parse(inspect.getsource(importlib.import_module(module))).body


def _text(node: ast.stmt) -> str:
    """Return the text of a docstring below an assignment."""
    is_doc = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    assert is_doc, f"line {node.lineno}: a docstring is missing before it"
    return " ".join(str(ast.literal_eval(node.value)).split())
