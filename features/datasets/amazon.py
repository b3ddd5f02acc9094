"""Amazon Reviews 2023: one category's reviews and products, read and written in blocks, however large.

Reviews are gzip'ed lines of JSON with milliseconds; products carry nested details, of which the columns that can be
features are kept. The product is `parent_asin`, by which the two files go together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson

from features.datasets.source import OriginalFiles
from features.errors import DataError

CATEGORIES = (
    "All_Beauty",
    "Amazon_Fashion",
    "Appliances",
    "Arts_Crafts_and_Sewing",
    "Automotive",
    "Baby_Products",
    "Beauty_and_Personal_Care",
    "Books",
    "CDs_and_Vinyl",
    "Cell_Phones_and_Accessories",
    "Clothing_Shoes_and_Jewelry",
    "Digital_Music",
    "Electronics",
    "Gift_Cards",
    "Grocery_and_Gourmet_Food",
    "Handmade_Products",
    "Health_and_Household",
    "Health_and_Personal_Care",
    "Home_and_Kitchen",
    "Industrial_and_Scientific",
    "Kindle_Store",
    "Magazine_Subscriptions",
    "Movies_and_TV",
    "Musical_Instruments",
    "Office_Products",
    "Patio_Lawn_and_Garden",
    "Pet_Supplies",
    "Software",
    "Sports_and_Outdoors",
    "Subscription_Boxes",
    "Tools_and_Home_Improvement",
    "Toys_and_Games",
    "Unknown",
    "Video_Games",
)
BLOCK_BYTES = 1 << 25
BLOCK_ROWS = 50_000
ITEM_COLUMNS = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("brand", pa.string()),
        ("categories", pa.string()),
        ("main_category", pa.string()),
        ("price", pa.float64()),
        ("features", pa.string()),
        ("description", pa.string()),
        ("average_rating", pa.float64()),
        ("rating_number", pa.int64()),
    ]
)
_REVIEW = pa.schema(
    [("user_id", pa.string()), ("parent_asin", pa.string()), ("rating", pa.float64()), ("timestamp", pa.int64())]
)


def category_of(name: str) -> str:
    """Return the category as Amazon Reviews writes it: `all-beauty` is `All_Beauty`.

    Raises:
        DataError: There is no such category.
    """
    wanted = name.replace("-", "_").lower()
    for category in CATEGORIES:
        if category.lower() == wanted:
            return category
    raise DataError(f"no category {name!r} in Amazon Reviews 2023; there are {', '.join(CATEGORIES)}")


def interactions(source: OriginalFiles, category: str) -> Iterator[pa.Table]:
    """Yield `user_id, item_id, rating, timestamp` (Unix seconds) in blocks, in the order of the file.

    Raises:
        DataError: The reviews are missing or not in this format.
    """
    with source.open(_file(source, category, "")) as file:
        options = pajson.ParseOptions(explicit_schema=_REVIEW, unexpected_field_behavior="ignore")
        reader = pajson.open_json(file, pajson.ReadOptions(block_size=BLOCK_BYTES), options)
        for batch in reader:
            columns = [batch[name] for name in ("user_id", "parent_asin", "rating")]
            seconds = pc.divide(batch["timestamp"], 1000)
            yield pa.table([*columns, seconds], names=["user_id", "item_id", "rating", "timestamp"])


def items(source: OriginalFiles, category: str) -> Iterator[pa.Table]:
    """Yield the products in blocks of rows.

    Raises:
        DataError: The products are missing or not in this format.
    """
    with source.open(_file(source, category, "meta_")) as file:
        products = (_product(line, row) for row, line in enumerate(file, start=1))
        while block := list(islice(products, BLOCK_ROWS)):
            yield pa.Table.from_pylist(block, schema=ITEM_COLUMNS)


def _file(source: OriginalFiles, category: str, prefix: str) -> str:
    names = [f"{prefix}{category}.jsonl.gz", f"{prefix}{category}.jsonl"]
    return next((name for name in names if source.has(name)), names[0])


def _product(line: bytes, row: int) -> dict[str, Any]:
    try:
        product = json.loads(line)
    except ValueError as error:
        raise DataError(f"the products, line {row:,}: not JSON ({error}); download the file again") from None
    details = product.get("details") or {}
    return {
        "item_id": product.get("parent_asin"),
        "title": product.get("title") or None,
        "brand": details.get("Brand") or product.get("store") or None,
        "categories": "|".join(product.get("categories") or []) or None,
        "main_category": product.get("main_category") or None,
        "price": _price(product.get("price")),
        "features": " ".join(product.get("features") or []) or None,
        "description": " ".join(product.get("description") or []) or None,
        "average_rating": product.get("average_rating"),
        "rating_number": product.get("rating_number"),
    }


def _price(price: object) -> float | None:
    """Return a price as a number: some are text, such as `$12.99` or `from 3.50`."""
    digits = "".join(letter for letter in str(price or "") if letter.isdigit() or letter == ".")
    try:
        return float(digits)
    except ValueError:
        return None
