"""GSM8K (arXiv 2110.14168): problems, and numbers found in answers."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NamedTuple

from peftjax.data.errors import DataError, json_object

_MARK = "####"
# Digits, perhaps grouped by commas; the bound keeps a hostile text from long work.
_NUMBER = re.compile(r"-?[$€£]?-?(?:\d[\d,]{0,40}(?:\.\d{1,40})?|\.\d{1,40})")
_NOTE = re.compile(r"<<[^<>\n]{0,200}>>")


class Problem(NamedTuple):
    """A problem, its solution in words, and the number it ends with."""

    question: str
    answer: str
    number: str


def load(path: str | os.PathLike[str], *, notes: bool = False) -> list[Problem]:
    """Return the problems of `train.jsonl` or `test.jsonl`.

    Args:
        path: the file, with `question` and `answer` in each line.
        notes: keep the calculator's notes, `<<2+3=5>>`, in the solutions.

    Raises:
        DataError: a line is damaged, or a solution has no number.
        FileNotFoundError: there is no such file.
    """
    problems = []
    lines = Path(path).read_text("utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        row = json_object(where, line)
        question, solution = row.get("question"), row.get("answer")
        if not isinstance(question, str) or not isinstance(solution, str):
            raise DataError(
                f"{where}: expected question and answer, found {json.dumps([*row])}"
            )
        found = extract(solution) if _MARK in solution else None
        if found is None:
            raise DataError(f"{where}: expected a solution that ends in {_MARK} NUMBER")
        kept = solution if notes else _NOTE.sub("", solution)
        problems.append(Problem(question, kept, found))
    return problems


def extract(text: str) -> str | None:
    r"""Return the number that a text answers with, in its plainest form.

    It is the number after `####`, else after the last "answer is", else the last one of
    the text. Currency signs, commas between digits and zeros behind the point are
    no part of it.

    >>> extract("so $1,250.00.\n#### 1,250"), extract("The answer is -3.5%")
    ('1250', '-3.5')
    >>> extract("I cannot say") is None
    True
    """
    marked = _MARK in text
    if marked:
        text = text[text.index(_MARK) + len(_MARK) :]
    else:
        text = _NOTE.sub("", text)
        said = text.lower().rfind("answer is")
        text = text[said:] if said >= 0 and _NUMBER.search(text, said) else text
        marked = said >= 0
    found = _NUMBER.findall(text)
    return _plain(found[0 if marked else -1]) if found else None


def exact_match(answers: Iterable[str], problems: Sequence[Problem]) -> list[bool]:
    """Return whether each answer has the number of its problem."""
    return [
        extract(answer) == problem.number
        for answer, problem in zip(answers, problems, strict=True)
    ]


def _plain(number: str) -> str:
    bare = re.sub(r"[$€£,]", "", number)
    try:
        value = Decimal(bare)
    except InvalidOperation:
        return bare
    return format(value.normalize() + 0, "f")
