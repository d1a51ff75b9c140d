"""What a frozen base model is, so that an adapter meets no other one.

Every leaf of `params` is described by shape and dtype and, where it is concrete, by a
digest of its content. The structure alone cannot tell two checkpoints of one
architecture apart; the content can. The digest takes `SAMPLES` evenly spaced entries
of each leaf: two checkpoints differ nearly everywhere, and hashing all of a 7 B base
would cost more than loading the adapter. A leaf that its method replaces (`Full`) is
described without content, since its frozen value enters nowhere: a head that was
initialised from another seed is no other model. A description per leaf, rather than
one hash, lets an error name the leaf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import msgspec
import numpy as np

from peftjax.core.paths import flatten

SAMPLES = 4096


class BaseLeaf(msgspec.Struct, forbid_unknown_fields=True):
    """A leaf of the frozen model; the digest is of its content, where it is known."""

    shape: list[int]
    dtype: str
    digest: str | None

    def __str__(self) -> str:
        return f"{self.dtype:.80}{self.shape}"


def describe_base(peft: Any, variables: Any = None) -> dict[str, BaseLeaf]:
    """Return shape, dtype and digest of all parameters by path.

    `digest` is None where the leaf is abstract, spread over other processes or
    replaced, and everywhere without `variables`.
    """
    names, leaves = peft.leaves.paths, peft.leaves.avals
    if variables is not None:
        names, leaves, _ = flatten(variables)
    replaced = {site.path for site in peft.sites if site.method.replaces}
    return {
        name: BaseLeaf(
            list(leaf.shape),
            np.dtype(leaf.dtype).name,
            None if name in replaced else _digest(leaf),
        )
        for name, leaf in zip(names, leaves)
        if name is not None
    }


def differences(
    expected: Mapping[str, BaseLeaf], found: Mapping[str, BaseLeaf]
) -> list[str]:
    """Return one line per leaf that differs between two descriptions."""
    lines = []
    for path in sorted(expected.keys() | found.keys()):
        here, there = expected.get(path), found.get(path)
        if here is None or there is None or str(here) != str(there):
            here, there = here or "no such leaf", there or "no such leaf"
            lines.append(f"{path:.200}: expected {here}, found {there}")
        elif here.digest and there.digest and here.digest != there.digest:
            lines.append(
                f"{path}: expected the values with digest {here.digest}, "
                f"found {there.digest:.80}"
            )
    return lines


def _digest(leaf: Any) -> str | None:
    if not isinstance(leaf, jax.Array | np.ndarray):
        return None
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return None
    values = np.asarray(leaf).reshape(-1)
    if values.size > SAMPLES:
        values = values[np.linspace(0, values.size - 1, SAMPLES).astype(np.int64)]
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]
