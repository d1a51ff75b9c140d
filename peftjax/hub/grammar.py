"""The regular expressions that a received file may hold, as trees.

The grammar is a part of Python's: characters, escapes, classes, `.`, anchors, groups,
alternatives, look ahead, and quantifiers over single characters and fixed words; over
other groups only `?`. A set of characters is an integer, a bit for each of ASCII, one
for all others and one for the end of the path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

REACH = 300
ASCII = (1 << 128) - 1
END = 1 << 129
ALL = (1 << 130) - 1
_OTHERS = "é٣\u2003→"
_LONGEST = 2000
_DEEPEST = 20
_ESCAPES = "dDsSwW"
_ANCHORS = ("^", "$", r"\b", r"\B", r"\A", r"\Z")
_GROUP = re.compile(r"\((?:\?(?::|=|!|P<[A-Za-z_]\w*>))?")
_COUNTS = re.compile(r"\{(\d{1,3})(,(\d{0,3}))?\}")
_CLASS = re.compile(r"\[\^?\]?(?:[^\]\\[]|\\[^A-Za-z0-9]|\\[dDsSwW])*\]")


class Repeat(NamedTuple):
    """Characters, `low` to `high` times.

    Attributes:
        mask: what the first of them may be.
        low: the least number of times.
        high: the largest.
        width: how many they are.
        cost: of a step; a lazy quantifier's is 2, a group's 3.
    """

    mask: int
    low: int = 1
    high: int = 1
    width: int = 1
    cost: int = 1


class Either(NamedTuple):
    """Alternatives; a look ahead takes no characters."""

    branches: tuple[tuple[Item, ...], ...]
    ahead: bool = False


Item = Repeat | Either


def parse(pattern: str) -> Either:
    """Return the tree of a pattern.

    Raises:
        ValueError: the pattern is not of the grammar.
    """
    if len(pattern) > _LONGEST:
        raise ValueError(f"longer than {_LONGEST} characters")
    parser = _Parser(pattern)
    branches = parser.branches(0)
    if parser.at < len(pattern):
        raise ValueError("a ) without (")
    _compiled(pattern)
    return Either(branches)


def lead(items: Sequence[Item], after: int) -> int:
    """Return what the first character may be; all where that takes more than a look."""
    mask = 0
    for item in items:
        if isinstance(item, Either):
            return ALL
        mask |= item.mask
        if item.low:
            return mask
    return mask | after


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def branches(self, depth: int) -> tuple[tuple[Item, ...], ...]:
        """Return alternatives up to the end or a closing parenthesis."""
        if depth > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} groups in each other")
        found: list[list[Item]] = [[]]
        while self.at < len(self.text) and self.text[self.at] != ")":
            if self.text[self.at] == "|":
                found.append([])
                self.at += 1
            elif not self._anchor():
                found[-1].append(self._repeated(self._item(depth)))
        return tuple(map(tuple, found))

    def _anchor(self) -> bool:
        found = self.text.startswith(_ANCHORS, self.at)
        if found:
            self.at += 1 + (self.text[self.at] == "\\")
            if self.text[self.at : self.at + 1] in tuple("*+?{"):
                raise ValueError("an anchor is repeated")
        return found

    def _item(self, depth: int) -> Item:
        char, start = self.text[self.at], self.at
        if char == "(":
            return self._group(depth)
        if char in "*+?{}":
            raise ValueError(
                f"a {char} that repeats nothing; as a character it is \\{char}"
            )
        if char == "[":
            self.at = self._class_end()
        elif char == "\\":
            escaped = self.text[start + 1 : start + 2]
            if not escaped or (escaped.isalnum() and escaped not in _ESCAPES):
                raise ValueError(f"unsupported escape \\{escaped}")
            self.at += 2
        else:
            self.at += 1
        return Repeat(_mask(self.text[start : self.at]))

    def _class_end(self) -> int:
        """Return where the class that begins here ends."""
        match = _CLASS.match(self.text, self.at)
        if match is None or re.search(r"&&|--|~~|\|\|", match[0]):
            raise ValueError("an unsupported or open [class]; a [ in it is written \\[")
        return match.end()

    def _group(self, depth: int) -> Item:
        match = _GROUP.match(self.text, self.at)
        if match is None or self.text.startswith("?", match.end()):
            raise ValueError(
                "an unsupported group (?...; known are (?:, (?P<, (?=, (?!"
            )
        self.at = match.end()
        branches = self.branches(depth + 1)
        if not self.text.startswith(")", self.at):
            raise ValueError("an open (")
        self.at += 1
        return Either(branches, ahead=match[0] in ("(?=", "(?!"))

    def _repeated(self, item: Item) -> Item:
        """Return the item with the quantifier that follows it, if any."""
        low, high = self._quantifier()
        if (low, high) == (1, 1):
            return item
        lazy = self.text.startswith("?", self.at)
        self.at += lazy
        if self.text[self.at : self.at + 1] in tuple("*+?{"):
            raise ValueError("a quantifier over a quantifier")
        if isinstance(item, Repeat):
            return item._replace(low=low, high=high, cost=1 + lazy)
        if item.ahead:
            raise ValueError("a look ahead is repeated")
        if (low, high) == (0, 1):
            return Either((*item.branches, ()))
        (chars, *more) = item.branches
        single = all(isinstance(c, Repeat) and c.low == c.high == 1 for c in chars)
        if more or not single or not chars:
            raise ValueError("a group with quantifiers or alternatives is repeated")
        return Repeat(lead(chars, 0), low, high, len(chars), cost=3)

    def _quantifier(self) -> tuple[int, int]:
        char = self.text[self.at : self.at + 1]
        if char in ("*", "+", "?"):
            self.at += 1
            return int(char == "+"), 1 if char == "?" else REACH
        if char != "{":
            return 1, 1
        match = _COUNTS.match(self.text, self.at)
        low = int(match[1]) if match else 0
        high = int(match[3] or REACH) if match and match[2] else low
        if match is None or not low <= high <= REACH or high == 0:
            raise ValueError(f"expected {{m,n}} with n of 1 to {REACH}, or \\{{")
        self.at = match.end()
        return low, high


@lru_cache(maxsize=1024)
def _mask(text: str) -> int:
    """Return the characters that an expression for one character matches."""
    expression = _compiled(text)
    mask = sum(1 << i for i in range(128) if expression.fullmatch(chr(i)))
    others = not text.isascii() or any(map(expression.fullmatch, _OTHERS))
    return mask | others << 128


def _compiled(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
