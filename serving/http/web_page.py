"""A web page that shows a user's history and recommendations with their reasons, and searches items by text."""

from __future__ import annotations

from flask import Blueprint, render_template, request

from features.schema import MAX_ID_CHARACTERS
from serving.bounds import MAX_SEARCH_CHARACTERS
from serving.recommend.recommender import Recommender
from serving.recommend.request import RecommendRequest
from serving.recommend.text_query import reads_texts

web_page = Blueprint("page", __name__)

NUM_SHOWN = 12
RECOMMENDER = "towers.recommender"
"""Key of the WSGI environment under which the page finds the recommender."""


@web_page.get("/")
def home() -> str:
    """Return the page, with the user of `?user=` or the items found for `?q=` if one of them is given."""
    recommender: Recommender = request.environ[RECOMMENDER]
    ids = recommender.state.users.ids
    user_id = request.args.get("user", "").strip()[:MAX_ID_CHARACTERS]
    q = request.args.get("q", "").strip()[:MAX_SEARCH_CHARACTERS]
    searches = reads_texts(recommender.bundle)
    return render_template(
        "home.html",
        user_id=user_id,
        q=q,
        searches=searches,
        found=recommender.search(q, NUM_SHOWN) if q and searches else None,
        answer=recommender.recommend(user_id, RecommendRequest(NUM_SHOWN, reasons=1)) if user_id else None,
        history=recommender.history(user_id, NUM_SHOWN) if user_id else None,
        examples=ids[:: max(1, len(ids) // 5)][:5],
        manifest=recommender.snapshot.manifest,
    )
