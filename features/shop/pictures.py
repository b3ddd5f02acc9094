"""Pictures of the generated shop's products: drawings as SVG, by category and colour, which are data themselves.

The address of a picture holds the whole of it (`data:image/svg+xml,...`), so that a table of items needs no other file.
The drawings are in `pictures.toml` in this folder.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from urllib.parse import quote

_DARKER, _LIGHTER = 0.62, 0.8
# Written as they are; the signs of which an address or markup is made are escaped.
_PLAIN = " ='/:;,.()"


@cache
def picture(category: str, colour: str) -> str:
    """Return the address of the picture of a product.

    Args:
        category: `Department > Category`.
        colour: Name of its colour, in English.
    """
    known = _drawings()
    own = known["colours"][colour]
    ground, dark = _mixed(own, 255, _LIGHTER), _mixed(own, 0, 1 - _DARKER)
    shapes = known["drawings"][category].replace("'C'", f"'{own}'")
    svg = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 48 48'><rect width='48' height='48' fill='{ground}'/>"
        f"<g fill='{own}' stroke='{dark}' stroke-width='1.6' stroke-linejoin='round' stroke-linecap='round'>"
        f"{shapes}</g></svg>"
    )
    return f"data:image/svg+xml,{quote(svg, safe=_PLAIN)}"


@cache
def _drawings() -> dict[str, dict[str, str]]:
    return tomllib.loads(files(__package__).joinpath("pictures.toml").read_text(encoding="utf-8"))


def _mixed(colour: str, other: int, share: float) -> str:
    """Return a colour mixed with black (0) or white (255) by a share."""
    parts = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(part * (1 - share) + other * share):02x}" for part in parts)
