"""Where the numbers of a run go: a JSONL file, TensorBoard, a progress bar."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from contextlib import ExitStack
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


class TensorBoard:
    """Scalars for TensorBoard, through tensorboardX.

    Raises:
        ImportError: tensorboardX is absent.
    """

    def __init__(self, directory: str | os.PathLike[str], after: int = 0):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard needs tensorboardX: pip install 'peftjax[train]'"
            ) from error
        self._writer = SummaryWriter(str(directory), purge_step=after + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Write every number of a record, nested ones as `outer/inner`."""
        step = record["step"]
        for name, value in record.items():
            values = value if isinstance(value, dict) else {"": value}
            for inner, number in values.items() if name != "step" else ():
                tag = f"{name}/{inner}".rstrip("/")
                self._writer.add_scalar(tag, number, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class Progress:
    """A progress bar with loss, examples per second and time left; a context.

    Args:
        steps: the length of the run.
        start: steps done before.
        show: by default only where standard error is a terminal.
    """

    def __init__(self, steps: int, start: int = 0, show: bool | None = None):
        self._show = sys.stderr.isatty() if show is None else show
        self._steps, self._start = steps, start
        self._stack = ExitStack()

    def __enter__(self) -> Progress:
        if self._show:
            from rich import progress
            from rich.console import Console

            columns = (
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.description}"),
                progress.TimeRemainingColumn(),
            )
            console = Console(stderr=True)
            self._bar = self._stack.enter_context(
                progress.Progress(*columns, console=console)
            )
            self._task = self._bar.add_task(
                "", total=self._steps, completed=self._start
            )
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def update(self, record: dict[str, Any]) -> None:
        """Move to the record's step and show its loss and speed."""
        if self._show:
            text = (
                f"loss {record['loss']:.4g}, {record['examples_per_s']:.4g} examples/s"
            )
            self._bar.update(self._task, completed=record["step"], description=text)
