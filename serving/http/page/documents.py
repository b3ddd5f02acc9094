"""Further pages: the model's report, the audit, and the API in Swagger UI. None sends a request to elsewhere.

Report and audit are files with scripts and styles of their own, so they are shown in a sandbox: as pages of no origin,
which can read nothing of this service.
"""

from __future__ import annotations

from pathlib import Path

import flask_swagger_ui
from flask import Blueprint, Response, current_app, make_response, render_template, request, send_from_directory
from werkzeug.exceptions import NotFound

from features.messages import cut
from serving.http.security_headers import DOCS_POLICY, SANDBOX_POLICY
from serving.http.service import Service
from serving.recommend.recommender import Recommender

documents = Blueprint("documents", __name__)

RECOMMENDER = "towers.recommender"
"""Key of the WSGI environment under which the pages find the recommender."""
REPORT, AUDIT = "report.html", "audit.html"
MAX_AUDIT_BYTES = 1 << 26
"""Maximum size of the audit's page."""
_SWAGGER = Path(flask_swagger_ui.__file__).parent / "dist"
_SWAGGER_FILES = ("swagger-ui.css", "swagger-ui-bundle.js")


def pages_of(service: Service, recommender: Recommender) -> list[tuple[str, str]]:
    """Return name and endpoint of the pages that there are."""
    found = []
    if REPORT in recommender.bundle.folder:
        found.append(("Report", "documents.report"))
    if service.settings.audit is not None:
        found.append(("Audit", "documents.audit"))
    return found


@documents.get("/report")
def report() -> Response:
    """Return the report of the model that is served.

    Raises:
        NotFound: The bundle has none.
    """
    recommender: Recommender = request.environ[RECOMMENDER]
    if REPORT not in recommender.bundle.folder:
        raise NotFound(f"the bundle has no {REPORT}; `towers train` writes one unless there is nothing to evaluate")
    return _sandboxed(recommender.bundle.folder.file(REPORT))


@documents.get("/audit")
def audit() -> Response:
    """Return the audit that the operator's settings name.

    Raises:
        NotFound: They name none, or it cannot be read.
    """
    service: Service = current_app.extensions["towers"]
    if service.settings.audit is None:
        raise NotFound("this service shows no audit; set `audit` to the folder that `towers audit` wrote into")
    try:
        return _sandboxed(Path(service.settings.audit) / AUDIT)
    except OSError as error:
        reason = cut(error.strerror or type(error).__name__, 100)
        raise NotFound(f"the audit cannot be read ({reason}); write it with `towers audit`") from None


@documents.get("/docs")
def docs() -> Response:
    """Return the API's document in Swagger UI."""
    response = make_response(render_template("docs.html"))
    response.headers["Content-Security-Policy"] = DOCS_POLICY
    return response


@documents.get("/docs/<path:filename>")
def docs_file(filename: str) -> Response:
    """Return a file of Swagger UI.

    Raises:
        NotFound: It is none of those that the page needs.
    """
    if filename not in _SWAGGER_FILES:
        raise NotFound(f"no such file; there are {', '.join(_SWAGGER_FILES)}")
    return send_from_directory(_SWAGGER, filename)


def _sandboxed(path: Path) -> Response:
    """Return a file as a page of no origin.

    Raises:
        NotFound: It is too large.
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    if size > MAX_AUDIT_BYTES:
        raise NotFound(f"the page is larger than {MAX_AUDIT_BYTES >> 20} MiB and is not shown; open the file itself")
    return Response(path.read_bytes(), mimetype="text/html", headers={"Content-Security-Policy": SANDBOX_POLICY})
