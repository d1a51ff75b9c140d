"""Checks of a method's settings that hold for every layer."""

from __future__ import annotations

import operator
from typing import Any

from peftjax.core.method import Method


def check_choice(method: Method, name: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless the setting is one of the allowed names."""
    found = getattr(method, name)
    if found not in allowed:
        raise ValueError(
            f"{type(method).__name__}({name}={found!r}): expected one of "
            f"{', '.join(map(repr, allowed))}"
        )


def check_count(method: Method, *names: str) -> None:
    """Make the settings plain integers; raise ValueError unless they are at least 1."""
    for name in names:
        found = getattr(method, name)
        object.__setattr__(method, name, count(found))
        if not getattr(method, name):
            raise ValueError(
                f"{type(method).__name__}({name}={found!r}): expected an integer >= 1"
            )


def count(found: Any) -> int:
    """Return an integer of at least 1 as a plain one; 0 for anything else."""
    try:
        return 0 if isinstance(found, bool) else max(operator.index(found), 0)
    except TypeError:
        return 0


def check_dropout(method: Method, name: str = "dropout") -> None:
    """Raise ValueError unless the setting is a probability below 1."""
    found = getattr(method, name)
    if not 0.0 <= found < 1.0:
        raise ValueError(
            f"{type(method).__name__}({name}={found!r}): expected 0 <= {name} < 1"
        )


def check_flag(method: Method, *names: str) -> None:
    """Raise ValueError unless the settings are true or false."""
    for name in names:
        found = getattr(method, name)
        if not isinstance(found, bool):
            raise ValueError(
                f"{type(method).__name__}({name}={found!r}): expected True or False"
            )
