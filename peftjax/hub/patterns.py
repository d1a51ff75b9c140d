r"""Regular expressions of received files: those whose matching is sure to end soon.

Python's `re` tries every way to match, and `(a+)+$` has exponentially many. A pattern
of a file is therefore parsed first, and the steps that `re` may take with it on a path
of `REACH` characters, none a newline, are bounded from above.

The bound follows all ways at once. After a repetition there are as many ways to go on
as it may have lengths, but only one where the next character cannot be one of its own
(`\d+/`). Several repetitions share one path, so `d` of them have `N^d / d!` ways. After
`.*`, the word `attn` lies at every fourth place at most, `aaaa` at any.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from peftjax.hub.grammar import (
    ALL,
    ASCII,
    END,
    REACH,
    Either,
    Item,
    Repeat,
    lead,
    parse,
)

STEPS = 3_000_000
_TOTAL = 10 * STEPS
_NARROW = 8  # lengths of a repetition that are few
_SEEN = 12  # characters of a word, and
_WORDS = 40  # words, of which the distance is computed


def check_patterns(patterns: Iterable[str], form: str = "{}") -> None:
    r"""Raise unless patterns are of the grammar and cheap to match.

    Args:
        patterns: the patterns.
        form: the expression in which each is used, the pattern being `{}`.

    Raises:
        ValueError: says which is refused and why.

    >>> check_patterns([r"layers_\d+/(query|value)/kernel"])
    >>> check_patterns([r"(a+)+$"])
    Traceback (most recent call last):
    ValueError: '(a+)+$': a group with quantifiers or alternatives is repeated
    """
    total = 0.0
    for pattern in patterns:
        try:
            parse(pattern)  # so that it stays whole in its form
            steps = bound(form.replace("{}", pattern))
        except ValueError as error:
            raise ValueError(f"{pattern!r:.120}: {error}") from error
        if steps > STEPS:
            raise ValueError(
                f"{pattern!r:.120}: matching could take {steps:.0e} steps, more than "
                f"{STEPS:.0e}: too much in it can match the same characters"
            )
        total += steps + REACH * len(pattern)  # the second for this function
        if total > _TOTAL:
            raise ValueError("too many patterns, which together are slow to match")


def bound(pattern: str) -> float:
    """Return a bound on the steps of `re.fullmatch` with a path of `REACH` characters.

    Raises:
        ValueError: the pattern is not of the grammar.
    """
    tree, count = parse(pattern), _Count()
    count.either(tree, _Ways(1.0), END)
    return max(count.steps, 1.0)


class _Ways(NamedTuple):
    """How many ways lead to one place, and through how many wide repetitions.

    Attributes:
        total: the ways.
        wide: the wide repetitions.
        before: the ways before a wide repetition that has just ended, or 0.
    """

    total: float
    wide: int = 0
    before: float = 0.0

    def at(self, words: Sequence[str]) -> float:
        """Return the ways that words leave of those that the repetition gave."""
        together = max(sum(map(word.startswith, words)) for word in words)
        return self.before * _lengths(self.wide, _distance(words)) * together


class _Count:
    """Steps, added up along all ways through an expression."""

    def __init__(self) -> None:
        self.steps = 0.0

    def either(self, item: Either, ways: _Ways, after: int) -> _Ways:
        """Return the ways after alternatives."""
        ends = []
        for branch in item.branches:
            first = lead(branch, after)
            self.steps += ways.total * (1.0 if first == ALL else 0.2)
            ends.append((first, self.row(branch, ways, after)))
        if item.ahead:
            return ways._replace(before=0.0)
        total = _most([(first, end.total) for first, end in ends])
        words = [_word(branch) for branch in item.branches]
        if ways.before and all(words) and len(words) <= _WORDS:
            total = min(total, ways.at(words))
        return _Ways(total, max(end.wide for _, end in ends))

    def row(self, items: Sequence[Item], ways: _Ways, after: int) -> _Ways:
        """Return the ways after items that follow each other."""
        word = ""  # since the last wide repetition
        for i, item in enumerate(items):
            rest = lead(items[i + 1 :], after)
            if isinstance(item, Either):
                ways = self.either(item, ways, rest)
            elif ways.before and (letter := _word([item])):
                self.steps += ways.total
                word += letter
                if len(word) <= _SEEN:
                    ways = ways._replace(total=ways.at([word]))
            else:
                ways, word = self.repeat(item, ways, rest), ""
        return ways

    def repeat(self, item: Repeat, ways: _Ways, follow: int) -> _Ways:
        """Return the ways after a repetition."""
        wide = item.high - item.low > _NARROW
        lengths = _lengths(ways.wide + 1, 1) if wide else item.high - item.low + 1.0
        every = item.mask | 1 << 10 >= ASCII | 1 << 128
        if every and follow == END and item.low <= item.width == 1:
            self.steps += lengths  # it takes all that is left, and that is the match
            return ways._replace(before=0.0)
        self.steps += ways.total * item.cost * (item.low * item.width + lengths)
        if lengths == 1 or not item.mask & follow:
            return ways._replace(before=0.0)
        before = ways.total if wide else 0.0
        return _Ways(ways.total * lengths, ways.wide + wide, before)


def _most(ends: Sequence[tuple[int, float]]) -> float:
    """Return the most ways with one first character, of those of all alternatives."""
    always, by_first = 0.0, {0: 0.0}
    for first, total in ends:
        if first == ALL:
            always += total
            continue
        while first:
            char = first & -first
            by_first[char] = by_first.get(char, 0.0) + total
            first ^= char
    return always + max(by_first.values())


def _word(items: Sequence[Item]) -> str:
    """Return the characters of a row of single ones, or nothing."""
    word = ""
    for item in items:
        if isinstance(item, Either) or item[1:4] != (1, 1, 1):
            return ""
        if item.mask.bit_count() != 1 or item.mask > ASCII:
            return ""
        word += chr(item.mask.bit_length() - 1)
    return word[:_SEEN]


def _lengths(wide: int, distance: int) -> float:
    """Return the factor of the ways that the `wide`-th wide repetition brings."""
    return (REACH / distance + wide) / wide


def _distance(words: Sequence[str]) -> int:
    """Return the least distance of two places at which some of the words are found."""
    starts = {word[:i] for word in words for i in range(1, len(word) + 1)}
    least = min(map(len, words))
    for distance in range(1, least):
        for rest in {word[distance:] for word in words}:
            if rest in starts or rest.startswith(tuple(words)):
                return distance
    return least
