"""Where the numbers of a run go: a file of JSON lines."""

from __future__ import annotations

import contextlib
import json
import math
import os
from typing import Annotated, Any

import msgspec

from peftjax import storage
from peftjax.errors import brief
from peftjax.training.errors import RunFileError

# Integers as far as a float holds each of them.
Number = float | Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]


class MetricsFile:
    """One JSON object per line, appended and flushed.

    A bucket cannot append: there lines are written when `keep` is called.

    Args:
        path: the file; its folder is created.
        after: lines of later steps are dropped, so that a resumed run leaves the file
            that an uninterrupted one would have left.

    Raises:
        RunFileError: the file is damaged.
    """

    def __init__(self, path: str | os.PathLike[str], after: int = 0):
        self.path, kept = storage.path(path), []
        if self.path.exists():
            kept = [r for r in read_metrics(self.path) if r["step"] <= after]
            storage.write_text(self.path, "".join(json.dumps(r) + "\n" for r in kept))
        self._text = "".join(json.dumps(record) + "\n" for record in kept)
        if not storage.in_bucket(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; it has a `"step"`."""
        line = json.dumps(record) + "\n"
        if storage.in_bucket(self.path):
            self._text += line
            return
        with self.path.open("a") as file:
            file.write(line)
            file.flush()

    def keep(self) -> None:
        """Write what is only in memory."""
        if storage.in_bucket(self.path):
            storage.write_text(self.path, self._text)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the records of a metrics file; a last line cut short is left out.

    Every record has a `"step"`, an integer, and no step is before the one above; the
    rest are numbers, and objects of numbers, of which only the latter may be NaN (a
    score that is not defined).

    Raises:
        RunFileError: anything else is in the file.
    """
    records, last = read_lines(path), 0
    for number, record in enumerate(records, start=1):
        where, step = f"{path}, line {number}", record.get("step")
        if type(step) is not int or step < last:
            raise RunFileError(
                f'{where}: expected a "step" of {last} or more, found {step!r:.80}'
            )
        last = step
        try:
            msgspec.convert(record, dict[str, Number | dict[str, Number]])
        except msgspec.ValidationError as error:
            raise RunFileError(f"{where}: {error}") from error
        for name, value in record.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise RunFileError(
                    f"{where}: {name!r:.80}: expected a finite number, found {value}"
                )
    return records


def read_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines; a last one cut short is left out.

    Raises:
        RunFileError: anything else is in the file.
    """
    try:
        *lines, cut = storage.path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise RunFileError(f"{path}: not read ({brief(error)})") from error
    records = [_record(f"{path}, line {i}", x) for i, x in enumerate(lines, start=1)]
    begun = cut[:2] == b'{"'[: len(cut)]
    with contextlib.suppress(RunFileError) if begun else contextlib.nullcontext():
        records += [_record(f"{path}, line {len(lines) + 1}", cut)] if cut else []
    return records


def _record(where: str, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise RunFileError(f"{where}: not JSON ({brief(error)})") from error
    if not isinstance(record, dict):
        raise RunFileError(f"{where}: expected an object, found {record!r:.80}")
    return record
