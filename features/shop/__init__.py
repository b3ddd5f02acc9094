"""A generated shop whose best possible recall is known: the default data of the demo and of the tests.

- `shop`: `generate_shop`, and the tables as files; `stream`: `write_shop_stream`, for any number of people.
- `products`, `people`, `choices`: products, users, choice probabilities.
- `words`: the words of titles and texts, from `words.toml`; `pictures`: drawings of products, from `pictures.toml`.
"""

from features.shop.shop import SIZES, Shop, Size, expected_recall, generate_shop, write_shop
from features.shop.stream import write_shop_stream

__all__ = ["SIZES", "Shop", "Size", "expected_recall", "generate_shop", "write_shop", "write_shop_stream"]
