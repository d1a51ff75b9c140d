"""MMLU (arXiv 2009.03300): 57 subjects, four choices each."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from peftjax.data.errors import DataError
from peftjax.errors import brief
from peftjax.evaluation.choices import Question

LETTERS = ("A", "B", "C", "D")
Row = tuple[str, tuple[str, ...], int]


def subjects(folder: str | os.PathLike[str]) -> list[str]:
    """Return the subjects of `<folder>/test/<subject>_test.csv`."""
    files = sorted((Path(folder) / "test").glob("*_test.csv"))
    return [file.name.removesuffix("_test.csv") for file in files]


def load(
    folder: str | os.PathLike[str], subject: str, shots: int = 0
) -> list[Question]:
    """Return the test questions of a subject, whose choices are letters.

    Args:
        folder: holds `test` and, for examples, `dev`.
        subject: one of `subjects`.
        shots: solved examples before each question, at most the five of `dev`.

    Raises:
        DataError: a file is damaged, or there are fewer examples.
        FileNotFoundError: there is no such file.
    """
    folder = Path(folder)
    name = subject.replace("_", " ")
    text = f"The following are multiple choice questions about {name}.\n\n"
    if shots:
        file = folder / "dev" / f"{subject}_dev.csv"
        solved = rows(file)
        if not 0 < shots <= len(solved):
            raise DataError(
                f"{file}: expected {shots} examples, found {len(solved)}; give fewer "
                "shots"
            )
        text += "".join(f"{asked(one)} {LETTERS[one[2]]}\n\n" for one in solved[:shots])
    choices = tuple(f" {letter}" for letter in LETTERS)
    return [
        Question(text + asked(one), choices, one[2])
        for one in rows(folder / "test" / f"{subject}_test.csv")
    ]


def asked(row: Row) -> str:
    """Return a question with its choices, up to the letter."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, row[1])]
    return "\n".join([row[0].strip(), *lines, "Answer:"])


def rows(file: Path) -> list[Row]:
    """Return question, choices and answer of each row.

    The original has no line of names and letters as answers; a copy with names, and
    numbers from 0, is read too.

    Raises:
        DataError: a row is not of six cells, or has another answer.
        FileNotFoundError: there is no such file.
    """
    answers = {**dict(zip(LETTERS, range(4))), **{str(i): i for i in range(4)}}
    found: list[Sequence[str]] = []
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            found = list(csv.reader(stream, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file}: damaged ({brief(error)})") from error
    named = bool(found) and found[0][0] == "question"
    for number, row in enumerate(found[named:], start=1 + named):
        if len(row) != 6 or row[5] not in answers:
            raise DataError(
                f"{file}, row {number}: expected a question, four choices and A to D, "
                f"found {list(row)!r:.80}"
            )
    return [(row[0], tuple(row[1:5]), answers[row[5]]) for row in found[named:]]
