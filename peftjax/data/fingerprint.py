"""What a split is, in a few numbers: its size, its class counts, a hash of its content.

The hash does not depend on the order of the examples, so that one task has one
fingerprint whether it came from TFDS, which shuffles as it writes, or from a folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def fingerprint(
    rows: Iterable[Sequence[bytes]], labels: np.ndarray, classes: int
) -> dict[str, Any]:
    """Return what to store with a result to say which examples it is about.

    Args:
        rows: the fields of each example as bytes, without the label.
        labels: `[N]`, one per row; integers, -1 where withheld, or scores.
        classes: number of classes; 0 for scores.

    Returns:
        `examples`; `classes`, the count of each, or `mean` for scores; `withheld`, the
        number of labels that are -1; `sha256`. All of them can be written as JSON.

    >>> one = fingerprint([[b"a"], [b"b"]], np.array([1, 0]), 2)
    >>> two = fingerprint([[b"b"], [b"a"]], np.array([0, 1]), 2)
    >>> one == two, one["examples"], one["classes"]
    (True, 2, [1, 1])
    """
    kind = np.dtype("<i4") if classes else np.dtype("<f4")
    digests = sorted(
        _digest([*row, np.asarray(label, kind).tobytes()])
        for row, label in zip(rows, labels, strict=True)
    )
    total = hashlib.sha256(b"".join(digests)).hexdigest()
    result: dict[str, Any] = {"examples": len(digests), "sha256": total}
    if not classes:
        return result | {"mean": round(float(np.mean(labels, dtype=np.float64)), 6)}
    known = labels[labels >= 0]
    counts = np.bincount(known, minlength=classes).tolist()
    return result | {"classes": counts, "withheld": len(labels) - len(known)}


def _digest(fields: Iterable[bytes]) -> bytes:
    result = hashlib.sha256()
    for field in fields:
        # The length tells ("ab", "c") from ("a", "bc").
        result.update(len(field).to_bytes(8, "little"))
        result.update(field)
    return result.digest()
