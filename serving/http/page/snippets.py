"""What the page shows, as a line of curl and as lines of Python, to copy."""

from __future__ import annotations

import json
import pprint
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

_KEY = "TOWERS_KEY"
_WIDTH = 100


@dataclass(frozen=True)
class ApiCall:
    """A request of the API.

    Attributes:
        path: Its path.
        query: The parameters of the query string, each with all its values.
        body: The body; None: it is a GET request.
    """

    path: str
    query: Mapping[str, Sequence[str]]
    body: Mapping[str, Any] | None = None

    @classmethod
    def get(cls, *path: str, query: Mapping[str, Sequence[str]]) -> ApiCall:
        """Return a GET request of a path, given by its segments."""
        return cls("/" + "/".join(quote(segment, safe="") for segment in path), query)

    def curl(self, root: str, *, needs_key: bool) -> str:
        """Return the line that sends it.

        Args:
            root: Address of the service, without a slash at the end.
            needs_key: Whether the service asks for an API key.
        """
        query = urlencode(self.query, doseq=True)
        words = ["curl", shlex.quote(f"{root}{self.path}{'?' if query else ''}{query}")]
        if needs_key:
            words.append(f'--header "Authorization: Bearer ${_KEY}"')
        if self.body is not None:
            content = json.dumps(self.body, ensure_ascii=False)
            words += ["--header 'Content-Type: application/json'", f"--data {shlex.quote(content)}"]
        return " ".join(words)

    def python(self, root: str, *, needs_key: bool) -> str:
        """Return a program that sends it and has the response as `answer`.

        Args:
            root: Address of the service, without a slash at the end.
            needs_key: Whether the service asks for an API key.
        """
        lines = ["import os", "import requests"] if needs_key else ["import requests"]
        arguments = [repr(f"{root}{self.path}")]
        if self.query:
            short = {name: _value(texts[0]) if len(texts) == 1 else list(texts) for name, texts in self.query.items()}
            arguments.append(f"params={_formatted(short)}")
        if self.body is not None:
            arguments.append(f"json={_formatted(self.body)}")
        if needs_key:
            arguments.append(f'headers={{"Authorization": f"Bearer {{os.environ[\'{_KEY}\']}}"}}')
        inner = "".join(f"    {argument},\n" for argument in arguments)
        method = "get" if self.body is None else "post"
        return "\n".join((*lines, "", f"answer = requests.{method}(\n{inner}).json()"))


def _value(text: str) -> Any:
    """Return a number as such, if it is sent as the same text; other values unchanged."""
    return int(text) if text.isascii() and text.isdecimal() and str(int(text[:18])) == text else text


def _formatted(value: Any) -> str:
    """Return a value as Python writes it, with lines indented as in an argument."""
    return pprint.pformat(value, width=_WIDTH, sort_dicts=False).replace("\n", "\n    ")
