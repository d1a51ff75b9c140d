"""BIG-Bench Hard (arXiv 2210.09261): answers of a few words, or choices."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from peftjax.data.errors import DataError, json_object, read_text
from peftjax.evaluation.choices import Question

_OPTION = re.compile(r"^(\([A-Z]\)|- )", re.MULTILINE)


class Example(NamedTuple):
    """A text and its answer."""

    text: str
    target: str


def load(path: str | os.PathLike[str]) -> list[Example]:
    """Return the examples of a task's JSON file.

    Raises:
        DataError: it is damaged, or not of `{"examples": [{"input", "target"}]}`.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such task")
    rows = json_object(path, read_text(path)).get("examples")
    good = isinstance(rows, list) and all(
        isinstance(row, dict)
        and all(isinstance(row.get(key), str) for key in ("input", "target"))
        for row in rows
    )
    if not good or not rows:
        raise DataError(f'{path}: expected {{"examples": [{{"input", "target"}}]}}')
    return [Example(row["input"], row["target"]) for row in rows]


def prompts(examples: Sequence[Example], shots: int = 0) -> list[tuple[str, Example]]:
    """Return the prompts of all but the first `shots` examples, which are solved.

    Raises:
        ValueError: too few examples.
    """
    if not 0 <= shots < len(examples):
        raise ValueError(f"shots={shots}: expected fewer than {len(examples)} examples")
    solved = [f"Q: {one.text}\nA: {one.target}\n\n" for one in examples[:shots]]
    before = "".join(solved)
    return [(f"{before}Q: {one.text}\nA:", one) for one in examples[shots:]]


def questions(examples: Sequence[Example], shots: int = 0) -> list[Question]:
    """Return the questions of a task whose answers are among few.

    Choices are those of a text's options, `(A)` or `- Yes`; of a task without options
    all its answers, if there are at most ten.

    Raises:
        DataError: the answers are no choices.
    """
    targets = sorted({one.target for one in examples})
    found = []
    for text, one in prompts(examples, shots):
        options = _options(one.text) or (targets if len(targets) <= 10 else [])
        if one.target not in options:
            raise DataError(
                f"{one.text!r:.60}: expected choices with {one.target!r:.40} among "
                f"them, found {options[:5]}"
            )
        choices = tuple(f" {option}" for option in options)
        found.append(Question(text, choices, options.index(one.target)))
    return found


def matches(answer: str, target: str) -> bool:
    """Return whether an answer is the target, but for case, spaces and a full stop.

    >>> matches(" the (B).", "(B)"), matches("Yes.", "yes")
    (False, True)
    """
    return _bare(answer) == _bare(target)


def _bare(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(". ")


def _options(text: str) -> list[str]:
    """Return `(A)`, `(B)`, ... or the texts behind dashes, in their order."""
    listed = text.partition("Options:\n")[2].splitlines()
    marked = [line for line in listed if _OPTION.match(line)]
    return [line[:3] if line[0] == "(" else line[2:].strip() for line in marked]
