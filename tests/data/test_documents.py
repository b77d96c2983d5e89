"""Documents from text and rows: boundaries, and each fault in one line; expected values by hand."""

import json

import pytest

from talltree.data import documents
from talltree.data.corpus_options import Source
from talltree.data.documents import Document, decoded, jsonl_rows, pieces, row_document, text_documents
from talltree.errors import ConfigError, DataError

TEXT = "One.\nTwo.\n\n\nThree. \r\n\n <|x|>Four.\nFive.<|x|>\n"


def read(text, **fields):
    return list(text_documents([text], Source(path="a.txt", separator="<|x|>", **fields), "a.txt"))


def test_what_a_document_is_in_a_text_file():
    assert read(TEXT) == ["One.\nTwo.\n\n\nThree.", "Four.\nFive."]
    assert read(TEXT, documents="separator") == read(TEXT)
    assert read(TEXT, documents="file") == [TEXT.strip()]
    assert read(TEXT, documents="blank_line") == ["One.\nTwo.", "Three.", "<|x|>Four.\nFive.<|x|>"]
    lines = ["One.", "Two.", "", "", "Three.", "", "<|x|>Four.", "Five.<|x|>"]
    assert read(TEXT, documents="line") == lines
    assert read("a\nb\n\nc\nd\n", documents="line", lines_per_document=2) == ["a\nb", "c", "d"]
    assert read("a<|x|><|x|>b<|x|>") == [
        "a",
        "",
        "b",
    ]  # an empty one between is counted, one at the end is none


def test_pieces_do_not_depend_on_how_the_text_is_cut():
    text = "ab--c---d--"
    for size in range(1, len(text) + 1):
        chunks = [text[at : at + size] for at in range(0, len(text), size)]
        assert list(pieces(chunks, "--", "x")) == ["ab", "c", "-d"]


def test_a_document_without_an_end_is_refused(monkeypatch):
    monkeypatch.setattr(documents, "LONGEST_DOCUMENT", 10)
    assert list(pieces(["a" * 6, "a" * 3], "--", "x")) == ["a" * 9]
    with pytest.raises(DataError, match="f.txt: a document of more than 10 characters"):
        list(pieces(["a" * 6, "a" * 6], "--", "f.txt"))
    with pytest.raises(DataError, match="11 characters as one document"):
        read("a" * 11, documents="file")


def test_every_byte_of_a_large_file_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "CHUNK", 5)  # cuts characters of 2 to 4 bytes
    path = tmp_path / "a.txt"
    text = "é😀 ﷽ e\u0301\r\n" * 20
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert "".join(decoded(path)) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty (0 bytes)"),
        (b"abc\xff", "byte 3 is not UTF-8 (invalid start byte)"),
        (b"abcdefgh\xe2\x82", "byte 8 is not UTF-8 (unexpected end of data)"),
        ("é".encode() * 5000 + b"\xff", "byte 10000 is not UTF-8"),
        (b"GIF89a\x00\x01", "is a binary file: byte 6 is NUL"),
        ("text".encode("utf-16"), "is UTF-16, not UTF-8"),
    ],
)
def test_files_that_are_no_text_are_named_with_the_byte(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(documents, "CHUNK", 64)
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(decoded(path))
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ', "line 3: not JSON (Expecting value at column 10)"),
        ("[1]", "line 3: a JSON list, not an object"),
        ('{"story": "b", "id": "c"}', "line 3: no column `text`; found: story, id"),
        ('{"text": 5}', "line 3: `text` is int, a string is needed"),
        ('{"text": null}', "line 3: `text` is NoneType"),
        ('{"text": "ab\\ud800"}', "line 3: character 2 of `text` is half a surrogate pair"),
        ('{"text": ' + "9" * 5000 + "}", "line 3: not JSON"),
        ('{"text": ' + "[" * 100_000 + "}", "line 3: not JSON"),
    ],
)
def test_bad_rows_are_named_with_their_line(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a"}\n\n' + line + "\n", encoding="utf-8")
    source = Source(path=str(path))
    with pytest.raises(DataError) as caught:
        [row_document(row, source, where) for where, row in jsonl_rows(path)]
    assert f"{path}, {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_line_breaks_inside_a_row_are_no_lines(tmp_path):
    texts = ["One.", "Two\n\nparts.\u2028three\x85four\x0bfive", "Thrée."]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
    source = Source(path=str(path))
    assert [row_document(row, source, where).completion for where, row in jsonl_rows(path)] == texts


def test_pairs_from_templates():
    source = Source(path="a.jsonl", prompt="T: {title}\n{post}\nTL;DR:", completion=" {summary}")
    row = {"title": " A {post} ", "post": "B", "summary": "C. ", "id": 7}
    pair = row_document(row, source, "row 1")
    assert pair == Document("T: A {post}\nB\nTL;DR:", " C.", "row 1")
    assert (pair.text, pair.key) == ("T: A {post}\nB\nTL;DR: C.", "T: A {post}\nB\nTL;DR:")
    assert row_document({**row, "summary": " "}, source, "row 1") == Document("", "", "row 1")
    alone = Source(path="a.jsonl", prompt="{title}", completion="{summary}")
    assert row_document(row, alone, "row 1")[:2] == (" A {post} ", "C. "), "as it is"
    assert row_document({**row, "summary": " \n"}, alone, "row 1")[:2] == ("", "")
    with pytest.raises(DataError, match="row 1: no column `post`; found: title, summary"):
        row_document({"title": "", "summary": ""}, source, "row 1")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "path or dataset is required"),
        ({"path": "a", "separator": ""}, "separator is empty"),
        ({"path": "a", "lines_per_document": 3}, "lines_per_document needs documents: line"),
        ({"path": "a", "prompt": "{x}"}, "prompt is given without completion"),
        ({"path": "a", "completion": "x"}, "completion 'x' names no column; write it as {column}"),
        ({"path": "a", "completion": "{x}", "documents": "line"}, "remove documents: line"),
    ],
)
def test_fields_that_do_not_go_together(fields, message):
    with pytest.raises(ConfigError, match=message):
        Source(**fields).check()
