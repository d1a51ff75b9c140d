"""Paths of leaves, and the rules that match them."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from peftjax.core.method import Method


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

    >>> flatten({"params": {"d": {"kernel": 1.0}}, "batch_stats": {"mean": 2.0}})[:2]
    ([None, 'd/kernel'], [2.0, 1.0])
    """
    pairs, structure = jax.tree_util.tree_flatten_with_path(variables)
    has_params = isinstance(variables, Mapping) and "params" in variables
    paths: list[str | None] = []
    for keys, _ in pairs:
        names = [_name(key) for key in keys]
        if len(keys) > 1 and isinstance(keys[-1], GetAttrKey) and names[-1] == "value":
            names.pop()
        if not has_params:
            paths.append("/".join(names))
        else:
            paths.append("/".join(names[1:]) if names[0] == "params" else None)
    return paths, [leaf for _, leaf in pairs], structure


def nearest(wanted: str, paths: Sequence[str], n: int = 5) -> list[str]:
    """Return the `n` paths most like `wanted` (a path or a regular expression).

    >>> nearest("fc2/kernal", ["fc1/bias", "fc2/kernel"], n=1)
    ['fc2/kernel']
    """
    plain = re.sub(r"\\.|[\^$*+?()\[\]{}|\\]", "", wanted)
    score = {path: SequenceMatcher(None, plain, path).ratio() for path in set(paths)}
    return sorted(score, key=lambda path: (-score[path], path))[:n]


def match(paths: Sequence[str], rules: Mapping[str, Any]) -> dict[str, Method]:
    """Return the method of each path that a rule decides; the first match wins.

    Args:
        paths: paths of all leaves that may be adapted.
        rules: regular expression, matched against the whole path, to method.

    Raises:
        TypeError: a rule's value is not a method.
        ValueError: no rules; a pattern is not a regular expression; a pattern decides
            no leaf (nothing matches, or earlier patterns take all that it matches).
    """
    if not rules:
        raise ValueError("rules are empty: expected {regular expression: method}")
    chosen: dict[str, Method] = {}
    for pattern, method in rules.items():
        if not isinstance(method, Method):
            raise TypeError(
                f"rule {pattern!r}: expected a method such as LoRA(rank=8, alpha=16), "
                f"found {method!r}"
            )
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"rule {pattern!r} is not a regular expression: {error}"
            ) from error
        hits = [path for path in paths if expression.fullmatch(path)]
        fresh = [path for path in hits if path not in chosen]
        if not fresh:
            raise ValueError(_decides_nothing(pattern, hits, paths))
        chosen.update(dict.fromkeys(fresh, method))
    return chosen


def _decides_nothing(pattern: str, hits: list[str], paths: Sequence[str]) -> str:
    if hits:
        return (
            f"rule {pattern!r} decides no parameter: earlier rules already take all "
            f"{len(hits)} that it matches, {hits[0]!r} among them; the first match "
            "wins, so put the narrower pattern first or delete this one"
        )
    near = "\n  ".join(nearest(pattern, paths))
    return (
        f"rule {pattern!r} matches no parameter. A pattern must match the whole path. "
        f"Nearest of {len(paths)} paths:\n  {near}"
    )
