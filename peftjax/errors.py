"""Words that the errors of every room share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def brief(error: BaseException) -> str:
    """Return what another library says, cut to a line or two.

    >>> brief(KeyError("x"))
    "KeyError: 'x'"
    """
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{'...' if len(text) > 200 else ''}"


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    """Return the error for a name that is none of `known`, with the nearest ones.

    >>> unknown("GLUE task", "mrcp", ["cola", "mrpc"])
    ValueError("unknown GLUE task 'mrcp': did you mean mrpc? There are cola, mrpc")
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return ValueError(f"unknown {what} {name!r}: {hint}There are {', '.join(known)}")
