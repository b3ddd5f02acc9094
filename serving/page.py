"""A page for people: type a user's id, see what they had, what they would be recommended and why."""

from __future__ import annotations

from flask import Blueprint, render_template, request

from serving.api import current_retriever
from serving.wanted import Wanted

page = Blueprint("page", __name__)

NUM_SHOWN = 12


@page.get("/")
def home() -> str:
    """Answer the page, with the user of `?user=` if one was asked for."""
    retriever = current_retriever()
    ids = retriever.users.ids
    user_id = request.args.get("user", "").strip()
    return render_template(
        "home.html",
        user_id=user_id,
        answer=retriever.recommend(user_id, Wanted(NUM_SHOWN, reasons=1)) if user_id else None,
        history=retriever.history(user_id, NUM_SHOWN) if user_id else None,
        examples=ids[:: max(1, len(ids) // 5)][:5],
        seal=retriever.snapshot.seal,
    )
