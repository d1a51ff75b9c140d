"""Your own labelled texts: a CSV, TSV, JSON Lines or parquet file with columns."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from peftjax import storage
from peftjax.data.errors import DataError
from peftjax.data.source import MissingData

Row = Mapping[str, Any]


class TableError(DataError):
    """A table of texts cannot be used."""


class Texts(NamedTuple):
    """The examples of a table.

    Attributes:
        texts: one list of N strings per text column.
        labels: `[N]`, int32.
        classes: what the label column holds, in the order of the labels: whole numbers
            by size, other names by the alphabet.
    """

    texts: tuple[list[str], ...]
    labels: np.ndarray
    classes: tuple[str, ...]


def find(folder: str | os.PathLike[str], name: str) -> Path:
    """Return the table of a name in a folder, whatever its format.

    Raises:
        MissingData: there is none.
        TableError: there are several.
    """
    tried = [storage.path(folder) / f"{name}{suffix}" for suffix in READERS]
    there = storage.names(storage.path(folder))
    found = [path for path in tried if path.name in there and path.is_file()]
    if not found:
        raise MissingData(
            f"{folder}/{name}: no such table; expected {', '.join(READERS)}"
        )
    if len(found) > 1:
        raise TableError(f"{found[0]}: {found[1].name} is there too; remove one")
    return found[0]


def read(path: str | os.PathLike[str], text: Sequence[str], label: str) -> Texts:
    """Read a table.

    Args:
        path: the file; its suffix tells the format.
        text: the one or two columns of texts.
        label: the column of classes.

    Raises:
        MissingData: there is no such file.
        TableError: no such format or column, a row without a text or a label, fewer
            than two classes, or a damaged file.
        ImportError: a parquet file, and pyarrow is absent.
    """
    path = storage.path(path)
    if not path.is_file():
        raise MissingData(f"{path}: no such table")
    path = storage.local(path)
    if path.suffix not in READERS:
        raise TableError(f"{path}: expected a file {', '.join(READERS)}")
    columns: dict[str, list[str]] = {name: [] for name in (*text, label)}
    try:
        for number, row in enumerate(READERS[path.suffix](path), start=1):
            for name, values in columns.items():
                values.append(_cell(f"{path}, row {number}", row, name, name == label))
    except (UnicodeDecodeError, csv.Error, RecursionError) as error:
        raise TableError(f"{path}: damaged ({error})") from error
    found = columns[label]
    classes = tuple(sorted(set(found), key=_order(found)))
    if len(classes) < 2:
        what = f"only {classes[0]!r}" if classes else "no rows"
        raise TableError(
            f"{path}: expected two classes or more in {label}, found {what}"
        )
    place = {name: number for number, name in enumerate(classes)}
    labels = np.array([place[name] for name in found], np.int32)
    return Texts(tuple(columns[name] for name in text), labels, classes)


def _cell(where: str, row: Row, name: str, label: bool) -> str:
    if name not in row:
        columns = [str(column) for column in row]
        near = get_close_matches(name, columns, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise TableError(
            f"{where}: no column {name!r}; {hint}there are {', '.join(columns)}"
        )
    value = row[name]
    if isinstance(value, float) and label and value.is_integer():
        value = int(value)
    if value is None or value == "" or isinstance(value, float | list | dict):
        what = "a class" if label else "a text"
        raise TableError(f"{where}: {name}={value!r}: expected {what}")
    return str(value)


def _order(found: Sequence[str]) -> Callable[[str], Any]:
    whole = all(
        name.isascii() and name.isdecimal() and len(name) < 19 for name in found
    )
    return int if whole else str


def _separated(delimiter: str) -> Callable[[Path], Iterator[Row]]:
    def rows(path: Path) -> Iterator[Row]:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
            for number, row in enumerate(reader, start=1):
                if None in row:
                    raise TableError(
                        f"{path}, row {number}: more cells than the "
                        f"{len(reader.fieldnames or ())} columns of the first line"
                    )
                yield row

    return rows


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise TableError(
                    f"{path}, line {number}: not JSON ({error})"
                ) from error
            if not isinstance(row, dict):
                raise TableError(f"{path}, line {number}: expected an object {{...}}")
            yield row


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"{path}: parquet needs pyarrow: pip install 'peftjax[data]'"
        ) from error
    try:
        yield from parquet.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{path}: not a whole parquet file ({error})") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
