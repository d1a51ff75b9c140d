"""The argument of a configuration file: `FILE:task=mrpc,method=lora,seed=1`."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UnknownName(ValueError):
    """There is no task, method, or key of this name."""


def known(name: str, valid: Iterable[str], what: str) -> str:
    """Return the name.

    Raises:
        UnknownName: it is not among the valid ones; the nearest are named.
    """
    valid = list(valid)
    if name not in valid:
        near = get_close_matches(name, valid, 2) or sorted(valid)
        raise UnknownName(f"unknown {what} {name!r}: did you mean {', '.join(near)}?")
    return name


def parse(arg: str, **choices: Iterable[str]) -> tuple[str, ...]:
    """Return the value of each choice, the first where `arg` does not name it.

    Args:
        arg: `key=value` pairs, separated by commas.
        **choices: the valid values of each key, the default first; `seed` takes any
            whole number.

    Raises:
        UnknownName: a key or a value; the nearest valid ones are named.

    >>> parse("method=hra", task=["mrpc", "cola"], method=["lora", "hra"], seed=["0"])
    ('mrpc', 'hra', '0')
    """
    chosen = {key: next(iter(values)) for key, values in choices.items()}
    for part in filter(None, arg.split(",")):
        key, _, value = part.partition("=")
        known(key, choices, "key")
        if key == "seed":
            if not value.isdecimal():
                raise UnknownName(f"seed={value!r}: expected a whole number")
        else:
            known(value, choices[key], key)
        chosen[key] = value
    return tuple(chosen.values())
