"""Classes of one data set found in another, by their names however written."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import numpy as np

from peftjax.data.errors import DataError


def places(where: str, found: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """Return the place of each name found among those that are known, int32 `[N]`.

    Case does not count, nor does what is neither letter nor digit. Where all names are
    numbers, and no classes are called so, they are places: ImageNet-V2 has such.

    Args:
        where: the names were found, for messages.
        found: N names.
        known: names of all classes, in the order of the labels.

    Raises:
        DataError: a name is no class, or two are the same one.

    >>> places("x", ["Big_Dog", "cat"], ["cat", "mouse", "big dog"]).tolist()
    [2, 0]
    """
    plain = {_plain(name): place for place, name in enumerate(known)}
    if all(name.isdecimal() for name in found) and not {*found} <= plain.keys():
        plain = {str(place): place for place in range(len(known))}
        found = [str(int(name)) for name in found]
    result: dict[int, str] = {}
    for name in found:
        place = plain.get(_plain(name))
        if place is None:
            near = get_close_matches(_plain(name), plain, 1)
            hint = f"did you mean {known[plain[near[0]]]!r}? " if near else ""
            raise DataError(
                f"{where}: the class {name!r} is none of {len(known)} known classes, "
                f"{', '.join(known[:8])}, ...: {hint}rename it"
            )
        if place in result:
            raise DataError(
                f"{where}: {result[place]!r} and {name!r} are both the class "
                f"{known[place]!r}"
            )
        result[place] = name
    return np.array([*result], np.int32)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
