"""Signatures of our packages are checked while tests run, shapes of arrays included.

jaxtyping's import hook decorates every function and every dataclass. What it decorates with costs tens of microseconds
a call, as much as many a function here, and is needed only where an annotation tells a shape: those of one signature
must fit together. These are checked at the first `FIRST` calls of a function in a test and at every `EVERY`th after
them. All other signatures are checked at each call by beartype alone, which costs hardly anything.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial, wraps
from types import FunctionType, ModuleType
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep3119Exception

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))
"""An int may stand for a float, as in mypy."""
_with_shapes = jaxtyping.jaxtyped
FIRST, EVERY = 20, 50
_turn = 0


def check_signatures(packages: list[str]) -> None:
    """Check signatures of what is imported from these packages from now on."""
    checker = ModuleType("signature_checker")
    checker.check = check  # type: ignore[attr-defined]
    sys.modules[checker.__name__] = checker
    jaxtyping.jaxtyped = lambda *, typechecker: partial(checked, typechecker)  # what the hook puts before functions
    jaxtyping.install_import_hook(packages, f"{checker.__name__}.check")


def check(function: Any) -> Any:
    """Check the signature of `function` at each call.

    One that takes a Protocol stays as it is: whether an object fits can't be seen at run time.
    """
    try:
        return _beartype(function)
    except BeartypeDecorHintPep3119Exception:
        return function


def checked(typechecker: Callable[[Any], Any], thing: Any) -> Any:
    """Return a function or class of which signatures are checked, by jaxtyping where shapes are told."""
    if isinstance(thing, type):
        if is_dataclass(thing) and not hasattr(thing.__init__, "__wrapped__"):
            thing.__init__ = checked(typechecker, thing.__init__)  # type: ignore[method-assign]
        return thing
    hints = _hints_of(thing)
    if not any(map(_tells_shapes, hints.values())):
        thing.__annotations__ = hints
        try:
            return _beartype(thing)
        except BeartypeDecorHintPep3119Exception:
            pass  # of parameters and result jaxtyping has each checked that can be
    return _at_first_calls(_with_shapes(thing, typechecker=typechecker), thing)


def count_calls_again() -> None:
    """Let the next calls of each function be its first ones again: a test begins."""
    global _turn
    _turn += 1


def _at_first_calls(checked: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is checked at its first calls in a test, and at some of those after them."""
    turn, calls = -1, 0

    @wraps(plain)
    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal turn, calls
        if turn != _turn:
            turn, calls = _turn, 0
        calls += 1
        return (checked if calls <= FIRST or calls % EVERY == 0 else plain)(*arguments, **named)

    return call


def _hints_of(function: FunctionType) -> dict[str, Any]:
    """Return the annotations of a function as types, without those whose names do not exist at run time."""
    hints = {}
    for name, annotation in function.__annotations__.items():
        only = FunctionType((lambda: None).__code__, function.__globals__)
        only.__annotations__ = {name: annotation}
        try:
            hints |= get_type_hints(only, include_extras=True)
        except Exception:  # whatever keeps a name from being resolved: jaxtyping leaves it out, too
            continue
    return hints


def _tells_shapes(hint: Any) -> bool:
    inner = hint if isinstance(hint, list) else get_args(hint)  # a list holds the parameters of a Callable
    return (isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)) or any(map(_tells_shapes, inner))
