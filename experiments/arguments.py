"""The names that a user chooses by, and the argument `FILE:task=mrpc,seed=1`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from ml_collections import ConfigDict


class UnknownName(ValueError):
    """There is no task, method, or key of this name."""


def known(name: str, valid: Iterable[str], what: str) -> str:
    """Return the name.

    Raises:
        UnknownName: it is not among the valid ones; the nearest is named.

    >>> known("loar", ["hra", "lora"], "method")
    Traceback (most recent call last):
    experiments.arguments.UnknownName: unknown method 'loar': did you mean lora?
    """
    valid = list(dict.fromkeys(valid))
    if name not in valid:
        near = get_close_matches(str(name), valid, 1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(valid)}"
        raise UnknownName(f"unknown {what} {name!r}: {hint}")
    return name


def door(config: Callable[..., ConfigDict]) -> Callable[[str], ConfigDict]:
    """Return `get_config(arg)`, as ml_collections calls it, over a function of choices.

    Its argument is `key=value` pairs, separated by commas; keys are the function's
    keywords, and what defaults to a number takes whole numbers.

    >>> get_config = door(lambda task="mrpc", seed=0: ConfigDict({"s": (task, seed)}))
    >>> get_config("seed=3").s
    ('mrpc', 3)
    """
    keywords = inspect.signature(config).parameters

    def get_config(arg: str = "") -> ConfigDict:
        chosen: dict[str, Any] = {}
        for key, value in pairs(arg).items():
            number = isinstance(keywords[known(key, keywords, "key")].default, int)
            chosen[key] = _whole(key, value) if number else value
        return config(**chosen)

    return get_config


def pairs(arg: str) -> dict[str, str]:
    """Return the `key=value` pairs of a configuration's argument."""
    parts = (part.partition("=") for part in arg.split(",") if part)
    return {key: value for key, _, value in parts}


def _whole(key: str, value: str) -> int:
    # Python refuses to read numbers of thousands of digits.
    if not (value.isascii() and value.isdecimal() and len(value) < 20):
        raise UnknownName(f"{key}={value!r}: expected a whole number")
    return int(value)
