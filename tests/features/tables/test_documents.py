"""A folder of documents becomes passages: where they are cut, what they are called, and what is refused."""

from __future__ import annotations

import pytest

from features.errors import DataError
from features.files import sha256
from features.tables.documents import PASSAGE_WORDS, passages, read_documents
from features.tables.table_files import read_frame
from features.values.text import word_starts


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "tea.md").write_text("# Tea\nBoil water.\n\n## Green\nCooler water.\n", encoding="utf-8")
    (tmp_path / "a note.txt").write_text("Bicycles need air.", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.md").write_text("secret", encoding="utf-8")
    (tmp_path / "empty.md").write_text("\n", encoding="utf-8")
    return tmp_path


def test_a_folder_is_read_as_a_table_of_passages(folder):
    frame = read_frame(folder)
    assert list(frame.columns) == ["document_id", "title", "text", "file"]
    assert frame.to_dict("records") == [
        {"document_id": "a note.txt#1", "title": "a note", "text": "Bicycles need air.", "file": "a note.txt"},
        {"document_id": "guide/tea.md#1", "title": "Tea", "text": "Boil water.", "file": "guide/tea.md"},
        {"document_id": "guide/tea.md#2", "title": "Tea: Green", "text": "Cooler water.", "file": "guide/tea.md"},
    ]


def test_long_sections_are_cut_between_paragraphs_and_long_paragraphs_between_words():
    third = " ".join(["word"] * (PASSAGE_WORDS // 2 + 1))
    long = " ".join(f"w{number}" for number in range(2 * PASSAGE_WORDS + 5))
    found = passages(f"# Title\n{third}\n\n{third}\n\nshort\n\n{long}", "name")
    lengths = [len(text.split()) for _, text in found]
    assert lengths == [PASSAGE_WORDS // 2 + 1, PASSAGE_WORDS // 2 + 2, PASSAGE_WORDS, PASSAGE_WORDS, 5]
    words = [word for _, text in found for word in text.split()]
    assert words == f"{third} {third} short {long}".split()
    assert {title for title, _ in found} == {"Title"}


def test_what_looks_like_a_heading_within_code_is_none():
    (only,) = passages("# Use\nSo:\n```sh\n# a comment\n\ntowers init\n```\n", "name")
    assert only == ("Use", "So:\n```sh\n# a comment\n\ntowers init\n```")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # a fence is closed by one of the same sign that is as long, not by any
        ("# A\n~~~\n```\n# no\n~~~\ntext\n## B\nend", [("A", "~~~\n```\n# no\n~~~\ntext"), ("A: B", "end")]),
        ("# A\n````\n```\n# no\n````\n## B\nend", [("A", "````\n```\n# no\n````"), ("A: B", "end")]),
        ("# A\ntext ``` in a line\n\n## B\nend", [("A", "text ``` in a line"), ("A: B", "end")]),
        ("# A\n- x\n\n  ```\n  # no\n\n  y\n  ```\n", [("A", "- x\n\n  ```\n  # no\n\n  y\n  ```")]),
        ("# A\n\n    # code, by its indent\n\ntext", [("A", "    # code, by its indent\n\ntext")]),
        ("# A\n<!--\n# no\n\n# no\n-->\ntext", [("A", "<!--\n# no\n\n# no\n-->\ntext")]),
        ("Tea\n===\nBoil.\n\nGreen\n-----\nCooler.", [("Tea", "Boil."), ("Tea: Green", "Cooler.")]),
        ("# *Tea* and `code` [x](y) #\nBoil.", [("Tea and code x", "Boil.")]),
        ("#hashtag\ntext", [("name", "#hashtag\ntext")]),
        ("---\ntitle: x\n---\n# Tea\nBoil.", [("Tea", "---\ntitle: x\n---"), ("Tea", "Boil.")]),
        ("# A\r\n```\r\n# no\r\n```\r\n", [("A", "```\n# no\n```")]),
    ],
)
def test_headings_and_code_are_where_commonmark_says(content, expected):
    assert passages(content, "name") == expected


def test_long_paragraphs_without_blanks_are_cut_too():
    (_, first), (_, second) = passages("# 茶\n" + "绿茶很好。" * 150, "name")
    assert first + second == "绿茶很好。" * 150
    assert second.startswith("绿")
    assert len(word_starts(first)) == PASSAGE_WORDS


def test_a_document_that_begins_without_a_heading_is_called_by_its_first_one():
    assert passages("Before.\n\n# Late\nAfter.", "name") == [("Late", "Before."), ("Late", "After.")]


def test_a_folder_without_documents_says_what_is_in_it(tmp_path):
    (tmp_path / "data.json").touch()
    with pytest.raises(DataError, match=r"a folder, expected .* or documents .* \(it holds data\.json\)"):
        read_documents(tmp_path)


def test_a_document_that_is_not_text_is_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt: not UTF-8 text"):
        read_documents(tmp_path)


def test_the_digest_of_a_folder_knows_names_and_contents(folder):
    before = sha256(folder)
    assert sha256(folder) == before
    (folder / "a note.txt").rename(folder / "b.txt")
    renamed = sha256(folder)
    (folder / "b.txt").write_text("Other.", encoding="utf-8")
    assert len({before, renamed, sha256(folder)}) == 3
