"""The one error of a run's files that cannot be used."""

from __future__ import annotations


class RunFileError(ValueError):
    """A file of a run is damaged, or of another run.

    The message names the file, the reason and what to do.
    """


def brief(error: BaseException) -> str:
    """Return what another library says, cut to a line or two.

    >>> brief(KeyError("x"))
    "KeyError: 'x'"
    """
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{'...' if len(text) > 200 else ''}"
