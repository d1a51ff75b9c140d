"""Texts of one's own: a table with columns."""

import json

import pytest

from peftjax.data import tables
from peftjax.data.source import MissingData
from peftjax.data.tables import TableError

ROWS = [{"text": "good, really", "label": "yes"}, {"text": "bad", "label": "no"}]


def write(file, rows=ROWS):
    match file.suffix:
        case ".csv" | ".tsv":
            mark = "," if file.suffix == ".csv" else "\t"
            lines = [mark.join(rows[0])]
            lines += [mark.join(f'"{cell}"' for cell in row.values()) for row in rows]
            file.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
        case ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
        case ".parquet":
            pa = pytest.importorskip("pyarrow", reason="needs peftjax[data]")
            from pyarrow import parquet

            parquet.write_table(pa.Table.from_pylist(rows), file)
    return file


@pytest.mark.parametrize("suffix", tables.READERS)
def test_every_format_gives_the_same(tmp_path, suffix):
    file = write(tmp_path / f"reviews{suffix}")
    assert tables.find(tmp_path, "reviews") == file
    found = tables.read(file, ["text"], "label")
    assert found.texts == (["good, really", "bad"],)
    assert found.classes == ("no", "yes") and found.labels.tolist() == [1, 0]


def test_whole_numbers_are_classes_in_their_order(tmp_path):
    rows = [{"text": "x", "label": label} for label in (10, 2, 2.0, 0)]
    found = tables.read(write(tmp_path / "x.jsonl", rows), ["text"], "label")
    assert found.classes == ("0", "2", "10") and found.labels.tolist() == [2, 1, 1, 0]


def test_pairs_of_texts_are_two_columns(tmp_path):
    rows = [{**row, "answer": "because"} for row in ROWS]
    found = tables.read(write(tmp_path / "x.csv", rows), ["text", "answer"], "label")
    assert found.texts[1] == ["because"] * 2


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.csv", "text,labl\na,b\n", r"row 1: no column 'label'; did you mean labl\?"),
        ("x.csv", "text,label\na,b\nc\n", "row 2: label=None: expected a class"),
        ("x.csv", "text,label\na,b\nc,\n", "row 2: label='': expected a class"),
        ("x.csv", "text,label\n,b\n", "row 1: text='': expected a text"),
        ("x.csv", "text,label\na,b,c\n", "row 1: more cells than the 2 columns"),
        ("x.csv", "text,label\na,b\n", "two classes or more in label, found only 'b'"),
        ("x.csv", "", "found no rows"),
        ("x.csv", b"text,label\n\xff\xfe,b\n", "damaged"),
        ("x.csv", 'text,label\n"a,b\n', "damaged"),
        ("x.jsonl", '{"text": "a", "label": 1}\n{', "line 2: not JSON"),
        ("x.jsonl", "[1]\n", "line 1: expected an object"),
        ("x.jsonl", "[" * 100_000, "damaged"),
        ("x.jsonl", '{"text": "a", "label": 0.5}\n', "label=0.5: expected a class"),
        ("x.jsonl", '{"text": "a", "label": null}\n', "label=None: expected a class"),
        ("x.jsonl", '{"text": ["a"], "label": 1}\n', "text=.*expected a text"),
        ("x.parquet", "no parquet", "not a whole parquet file"),
        ("x.txt", "", r"expected a file \.csv, \.tsv, \.jsonl, \.parquet"),
    ],
)
def test_a_table_that_cannot_be_used_is_told(tmp_path, name, content, told):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="needs peftjax[data]")
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TableError, match=told) as caught:
        tables.read(file, ["text"], "label")
    assert str(caught.value).startswith(str(file))


def test_a_table_that_is_not_there_or_twice_is_told(tmp_path):
    with pytest.raises(MissingData, match=r"reviews: no such table; expected \.csv"):
        tables.find(tmp_path, "reviews")
    with pytest.raises(MissingData, match="no such table"):
        tables.read(tmp_path / "reviews.csv", ["text"], "label")
    write(tmp_path / "reviews.csv")
    write(tmp_path / "reviews.jsonl")
    with pytest.raises(TableError, match=r"reviews\.jsonl is there too"):
        tables.find(tmp_path, "reviews")
