"""Pages that load nothing from elsewhere, from the templates of this package."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

_CODE = re.compile("`([^`]+)`")


def render(template: str, **values: Any) -> str:
    """Return the page of a template of `training/templates`.

    Args:
        template: The template's file name.
        values: What the template names; text is escaped there.

    Raises:
        jinja2.UndefinedError: The template names what was not given.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("training"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["marked"] = marked
    return environment


def marked(text: str) -> Markup:
    """Return a text for a page, with what stands between backticks as code.

    Example:
        >>> marked("`towers index` & more")
        Markup('<code>towers index</code> &amp; more')
    """
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704 (escaped)
