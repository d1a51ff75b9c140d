"""The one error of files that cannot be used, and text and JSON read with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peftjax.errors import brief


class DataError(ValueError):
    """A file of data, of tokens or of a tokenizer is damaged or not what it should be.

    The message names the file and the reason.
    """


def json_object(where: str | Path, text: str) -> dict[str, Any]:
    """Return the object that a JSON text is; `where` is for the message.

    Raises:
        DataError: the text is no JSON, too deep, or no object.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected a JSON object ({brief(error)})") from error
    if not isinstance(document, dict):
        raise DataError(
            f"{where}: expected a JSON object, found a {type(document).__name__}"
        )
    return document


def read_text(file: Path) -> str:
    """Return a text file.

    Raises:
        DataError: the file cannot be read, or is not UTF-8.
    """
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a text file ({brief(error)})") from error
