"""What is generated in `docs/`, each file from the one definition of its content; `python -m tests.documentation`."""

from __future__ import annotations

from collections.abc import Callable

from tests.documentation.command_line import command_line_page
from tests.documentation.diagrams import DIAGRAMS
from tests.documentation.http_api import http_page
from tests.documentation.licences import licences_page
from tests.documentation.metrics import metrics_page
from tests.documentation.python_api import python_page
from tests.documentation.settings import settings_page

GENERATED: dict[str, Callable[[], str]] = {
    "reference/settings.md": settings_page,
    "reference/command-line.md": command_line_page,
    "reference/http-api.md": http_page,
    "reference/metrics.md": metrics_page,
    "reference/python.md": python_page,
    "reference/compatibility.md": licences_page,
    **DIAGRAMS,
}
"""By its path in `docs/`: how each file is made."""
