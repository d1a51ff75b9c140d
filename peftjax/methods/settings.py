"""Checks of a method's settings that hold for every layer, one for each kind.

All raise ValueError that names method, setting, what was found and what was expected.
What passes is stored as a plain Python value, so that any adapter file can hold it.
"""

from __future__ import annotations

import operator
from math import isfinite, nan
from numbers import Real
from typing import Any

from peftjax.core.method import Method


def check_choice(method: Method, name: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless the setting is one of the allowed names."""
    found = getattr(method, name)
    fits = isinstance(found, str) and found in allowed
    _keep(method, name, fits, f"one of {', '.join(map(repr, allowed))}")


def check_count(method: Method, *names: str) -> None:
    """Raise ValueError unless the settings are integers of at least 1."""
    for name in names:
        value = count(getattr(method, name))
        _keep(method, name, value > 0, "an integer >= 1", value)


def check_dropout(method: Method, name: str = "dropout") -> None:
    """Raise ValueError unless the setting is a probability below 1."""
    value = number(getattr(method, name))
    _keep(method, name, 0 <= value < 1, f"0 <= {name} < 1", value)


def check_flag(method: Method, *names: str) -> None:
    """Raise ValueError unless the settings are true or false."""
    for name in names:
        fits = isinstance(getattr(method, name), bool)
        _keep(method, name, fits, "True or False")


def check_numbers(method: Method, name: str) -> tuple[float, ...]:
    """Raise ValueError unless the setting is a list of finite numbers; return it."""
    found = getattr(method, name)
    values = tuple(map(number, found)) if isinstance(found, tuple | list) else (nan,)
    fits = all(map(isfinite, values))
    _keep(method, name, fits, "finite numbers", values)
    return values


def check_share(method: Method, *names: str) -> None:
    """Raise ValueError unless the settings are above 0 and below 1."""
    for name in names:
        value = number(getattr(method, name))
        _keep(method, name, 0 < value < 1, f"0 < {name} < 1", value)


def check_size(method: Method, *names: str) -> None:
    """Raise ValueError unless the settings are finite numbers of at least 0."""
    for name in names:
        value = number(getattr(method, name))
        _keep(method, name, value >= 0, "a finite number >= 0", value)


def check_strength(method: Method, name: str) -> None:
    """Raise ValueError unless the setting is a finite number other than 0."""
    value = number(getattr(method, name))
    _keep(method, name, abs(value) > 0, "a finite number other than 0", value)


def count(found: Any) -> int:
    """Return an integer of at least 1 as a plain one; 0 for anything else."""
    try:
        return 0 if isinstance(found, bool) else max(operator.index(found), 0)
    except TypeError:
        return 0


def number(found: Any) -> float:
    """Return a finite number as a plain one; NaN for anything else, a bool too."""
    if isinstance(found, bool) or not isinstance(found, Real):
        return nan
    try:
        plain = found if isinstance(found, int) else float(found)
        return plain if isfinite(plain) else nan
    except OverflowError:  # an integer beyond every float
        return nan


def _keep(
    method: Method, name: str, fits: bool, expected: str, value: Any = None
) -> None:
    """Store the plain value, if there is one; raise ValueError if it does not fit."""
    found = getattr(method, name)
    if not fits:
        raise ValueError(
            f"{type(method).__name__}({name}={found!r}): expected {expected}"
        )
    object.__setattr__(method, name, found if value is None else value)
