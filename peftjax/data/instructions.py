"""Files of instructions or conversations: JSON, JSON Lines, CSV or parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from peftjax import storage
from peftjax.data.errors import DataError, read_text
from peftjax.data.source import MissingData
from peftjax.data.tables import READERS
from peftjax.errors import brief

Row = Mapping[str, Any]
FIELDS = {"instruction": True, "input": False, "output": True}  # and which must be
ROLES = ("system", "user", "assistant", "tool")
_MOST = 2**31  # bytes of a JSON file, which is read whole


def read(
    path: str | os.PathLike[str], columns: Mapping[str, str] | None = None
) -> list[Row]:
    """Return the rows of a file: `instruction`, `input`, `output`, or `messages`.

    Args:
        path: the file; its suffix tells the format. JSON is a list of rows.
        columns: the file's names, where they are others: `{"output": "answer"}`.

    Raises:
        MissingData: there is no such file.
        DataError: it is damaged, or a row has other columns, no text or no message.
    """
    path = storage.local(path)
    if not path.is_file():
        raise MissingData(f"{path}: no such file of instructions")
    readers = {**READERS, ".json": _json}
    if path.suffix not in readers:
        raise DataError(f"{path}: expected a file {', '.join(readers)}")
    names = {name: name for name in (*FIELDS, "messages")} | dict(columns or {})
    try:
        rows = [
            _row(f"{path}, row {number}", row, names)
            for number, row in enumerate(readers[path.suffix](path), start=1)
        ]
    except (UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({brief(error)})") from error
    if not rows:
        raise DataError(f"{path}: expected rows, found none")
    return rows


def _json(path: Path) -> Iterable[Row]:
    if path.stat().st_size > _MOST:
        raise DataError(f"{path}: larger than {_MOST} bytes; expected JSON Lines")
    try:
        rows = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({brief(error)})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected a list of objects")
    return rows


def _row(where: str, row: Row, names: Mapping[str, str]) -> Row:
    if names["messages"] in row:
        return {"messages": messages(where, row[names["messages"]])}
    found = {}
    for field, needed in FIELDS.items():
        name = names[field]
        value = row.get(name)
        if name not in row and needed:
            near = get_close_matches(name, map(str, row), 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise DataError(
                f"{where}: no column {name!r}; {hint}expected {', '.join(FIELDS)} or "
                f"messages, found {', '.join(map(str, row))}"
            )
        if not isinstance(value, str | None) or (needed and not value):
            raise DataError(f"{where}: {name}={value!r:.80}: expected a text")
        found[field] = value or ""
    return found


def messages(where: str, found: Any) -> list[dict[str, str]]:
    """Return the messages of a conversation.

    Raises:
        DataError: no list of role and content, or no assistant in it.
    """
    good = isinstance(found, list) and all(
        isinstance(one, dict)
        and one.get("role") in ROLES
        and isinstance(one.get("content"), str)
        for one in found
    )
    if not good:
        raise DataError(
            f"{where}: messages={found!r:.80}: expected a list of "
            f'{{"role": {" | ".join(ROLES)}, "content": text}}'
        )
    if not any(one["role"] == "assistant" for one in found):
        raise DataError(f"{where}: messages: expected one of the assistant, found none")
    return [{"role": one["role"], "content": one["content"]} for one in found]
