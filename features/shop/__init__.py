"""The generated shop: `words` (and `words.toml`) · `products` · `people` · `choices` · `shop`, with `generate_shop`.

The default data of the demo and of the tests; the best possible recall on it is known.
"""

from features.shop.shop import SIZES, Shop, Size, expected_recall, generate_shop, write_shop

__all__ = ["SIZES", "Shop", "Size", "expected_recall", "generate_shop", "write_shop"]
