"""What service.py is measured against: a Flask route that returns a constant, under our server and its settings.

BODY_BYTES=1000 python -m tests.benchmarks.rivals.bare_flask FILE, as `serving.server.server.WorkerInstructions` writes
one
"""

from __future__ import annotations

import os
import sys

from flask import Flask, Response

from serving.server import server


def create() -> Flask:
    """Return the application."""
    app = Flask(__name__)
    body = b"x" * int(os.environ["BODY_BYTES"])

    @app.get("/recommendations/<user_id>")
    def known(user_id: str) -> Response:
        return Response(body, mimetype="application/json")

    @app.post("/recommendations")
    def described() -> Response:
        return Response(body, mimetype="application/json")

    @app.get("/readyz")
    def ready() -> Response:
        return Response(b"{}", mimetype="application/json")

    return app


if __name__ == "__main__":
    server.APP = "tests.benchmarks.rivals.bare_flask:create"
    server.main(str(os.open(sys.argv[1], os.O_RDONLY)))
