"""Paths of leaves, and the rules that match them."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, TypeVar

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from peftjax.core.coded import is_coded
from peftjax.core.method import Method

Decision = TypeVar("Decision")


def _name(key: Hashable) -> str:
    match key:
        case DictKey(key=name) | FlattenedIndexKey(key=name) | GetAttrKey(name=name):
            return str(name)
        case SequenceKey(idx=index):
            return str(index)
        case _:
            return str(key)


def flatten(variables: Any) -> tuple[list[str | None], list[Any], Any]:
    """Flatten variables into paths, leaves and the tree's structure.

    A path is relative to the `params` collection where that exists; a leaf of any other
    collection has the path None. The box of a partitioned parameter is not part of its
    path.

    Raises:
        TypeError: a leaf is no array.

    >>> ones = jax.numpy.ones(2)
    >>> flatten({"params": {"d": {"kernel": ones}}, "batch_stats": {"mean": ones}})[0]
    [None, 'd/kernel']
    """
    names, leaves, structure = spelled(variables)
    if odd := [pair for pair in zip(names, leaves) if not hasattr(pair[1], "dtype")]:
        name, found = odd[0]
        raise TypeError(
            f"variables: expected an array at {name!r}, found {found!r}; "
            "write it as jnp.asarray(...)"
        )
    if not (isinstance(variables, Mapping) and "params" in variables):
        return [*names], leaves, structure
    inside = "params/"
    paths = [n.removeprefix(inside) if n.startswith(inside) else None for n in names]
    return paths, leaves, structure


def spelled(variables: Any) -> tuple[list[str], list[Any], Any]:
    """Flatten variables into whole paths, collections included."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(variables, is_coded)
    paths: list[str] = []
    for keys, _ in pairs:
        names = [_name(key) for key in keys]
        if len(keys) > 1 and isinstance(keys[-1], GetAttrKey) and names[-1] == "value":
            names.pop()
        paths.append("/".join(names))
    return paths, [leaf for _, leaf in pairs], structure


def nearest(wanted: str, paths: Sequence[str], n: int = 5) -> list[str]:
    """Return the `n` paths most like `wanted` (a path or a regular expression).

    >>> nearest("fc2/kernal", ["fc1/bias", "fc2/kernel"], n=1)
    ['fc2/kernel']
    """
    plain = re.sub(r"\\.|[\^$*+?()\[\]{}|\\]", "", wanted)
    score = {path: SequenceMatcher(None, plain, path).ratio() for path in set(paths)}
    return sorted(score, key=lambda path: (-score[path], path))[:n]


def read(rules: Any) -> tuple[tuple[str, Method], ...]:
    """Return rules, a mapping or a sequence of pairs, as pairs of text and method.

    A compiled pattern stands as its text.

    Raises:
        TypeError: rules, a pattern or a method of another type.
        ValueError: no rules; a pattern that is no regular expression, or one compiled
            with flags, which its text does not show.
    """
    pairs = tuple(rules.items()) if isinstance(rules, Mapping) else rules
    if not isinstance(pairs, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
    ):
        raise TypeError(
            "rules: expected {regular expression: method} or a list of such pairs, "
            f"found {rules!r}"
        )
    if not pairs:
        raise ValueError("rules are empty: expected {regular expression: method}")
    return tuple((_text(pattern), _method(pattern, found)) for pattern, found in pairs)


def _text(pattern: Any) -> str:
    text = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    if not isinstance(text, str):
        raise TypeError(f"rule {pattern!r}: expected a regular expression of type str")
    try:
        compiled = re.compile(text)
    except re.error as error:
        raise ValueError(
            f"rule {pattern!r} is not a regular expression: {error}"
        ) from error
    if isinstance(pattern, re.Pattern) and pattern.flags != compiled.flags:
        raise ValueError(
            f"rule {pattern!r}: flags are not saved with a rule; write them into the "
            "pattern, as (?i) for one"
        )
    return text


def _method(pattern: Any, found: Any) -> Method:
    if not isinstance(found, Method):
        raise TypeError(
            f"rule {pattern!r}: expected a method such as LoRA(rank=8, alpha=16), "
            f"found {found!r}"
        )
    return found


def match(
    paths: Sequence[str],
    rules: Sequence[tuple[str, Decision]],
    what: str = "parameter",
) -> dict[str, tuple[str, Decision]]:
    """Return the rule that decides each path, if one does; the first match wins.

    Args:
        paths: paths of all leaves that may be adapted.
        rules: pairs of a regular expression, matched against the whole path, and what
            it decides, a method for one.
        what: what a path is of, for messages.

    Raises:
        ValueError: two leaves are spelled alike; a pattern decides no leaf (nothing
            matches, or earlier patterns take all that it matches).
    """
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(
            f"two parameters have the path {twice!r}: adapters could not tell them "
            "apart; rename one, or keep '/' out of its name"
        )
    chosen: dict[str, tuple[str, Decision]] = {}
    for pattern, decision in rules:
        expression = re.compile(pattern)
        hits = [path for path in paths if expression.fullmatch(path)]
        fresh = [path for path in hits if path not in chosen]
        if not fresh:
            raise ValueError(_decides_nothing(pattern, hits, paths, what))
        chosen.update(dict.fromkeys(fresh, (pattern, decision)))
    return chosen


def _decides_nothing(
    pattern: str, hits: list[str], paths: Sequence[str], what: str
) -> str:
    if hits:
        return (
            f"rule {pattern!r} decides no {what}: earlier rules already take all "
            f"{len(hits)} that it matches, {hits[0]!r} among them; the first match "
            "wins, so put the narrower pattern first or delete this one"
        )
    near = "\n  ".join(nearest(pattern, paths))
    return (
        f"rule {pattern!r} matches no {what}. A pattern must match the whole path. "
        f"Nearest of {len(paths)} paths:\n  {near}"
    )


def refuse_dead(
    names: Sequence[str | None],
    live: Sequence[bool],
    chosen: Mapping[str, tuple[str, Method]],
) -> None:
    """Raise ValueError where a rule decides a parameter on which no output depends."""
    dead: dict[str, list[str]] = {}
    for name, used in zip(names, live):
        if name is not None and name in chosen and not used:
            dead.setdefault(chosen[name][0], []).append(name)
    if dead:
        found = "\n  ".join(f"rule {r!r}: {', '.join(p)}" for r, p in dead.items())
        raise ValueError(
            "no output of this call depends on these parameters, so that adapters on "
            f"them could not train:\n  {found}\nNarrow the rules, or plan with "
            "arguments under which the model uses them"
        )
