"""Ids of users and items: their columns, and how long they may be."""

ITEM_ID = "item_id"
USER_ID = "user_id"
MAX_ID_CHARACTERS = 512
"""The longest id of a user or an item: in tables, in requests and in live writes."""
