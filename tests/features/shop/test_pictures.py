from __future__ import annotations

from urllib.parse import unquote
from xml.etree import ElementTree

from features.shop.pictures import picture
from features.shop.words import load_words


def test_every_product_has_a_picture_that_is_valid_and_small():
    words = load_words()
    made = {picture(category.path, colour) for category in words.categories for colour in words.colours}
    assert len(made) == len(words.categories) * len(words.colours)
    for address in made:
        kind, _, drawing = address.partition(",")
        assert kind == "data:image/svg+xml"
        assert len(address) < 700
        assert not set('<>"#') & set(drawing)
        root = ElementTree.fromstring(unquote(drawing))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(root) == 2
