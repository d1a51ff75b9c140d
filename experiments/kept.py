"""What a run keeps of a state: its adapters, and collections that training moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from experiments.run import Run
from experiments.workdir import COLLECTIONS, RunFolder
from peftjax import storage
from peftjax.hub import files
from peftjax.hub.tensors import load_tree, save_tree
from peftjax.parallel.distributed import led


class Kept(NamedTuple):
    """Of one step.

    Attributes:
        adapters: the whole tree.
        collections: as `TrainState.mutable`; empty for most models.
    """

    adapters: Any
    collections: Mapping[str, Any]

    @classmethod
    def of(cls, one: Run, state: Any) -> Kept:
        """Return what is kept of a state."""
        return cls(one.peft.combine(state.trainable, state.frozen), state.mutable)


def save(one: Run, folder: RunFolder, name: str, kept: Kept) -> int:
    """Leave the files `NAME.*` in the run's folder; return the bytes of the adapters.

    Called by all processes; the first one writes.
    """
    place, beside = folder.path / name, f"{name}_{COLLECTIONS}"
    folder.own(f"{name}.json", f"{name}.safetensors")
    if kept.collections:
        folder.own(beside)
        tree = {"params": jax.device_get(dict(kept.collections))}  # as save_tree reads
        led(lambda: save_tree(folder.path / beside, tree))

    def write() -> int:
        tensors, _ = files.save(place, one.peft, kept.adapters, one.base)
        return storage.size(tensors)

    return led(write)


def load(one: Run, folder: RunFolder, name: str) -> Kept:
    """Return what `save` left."""
    collections = {}
    if one.outline.mutable:
        like = {key: one.base[key] for key in one.outline.mutable}
        file = folder.path / f"{name}_{COLLECTIONS}"
        collections = load_tree(file, {"params": like})["params"]
    return Kept(files.load(folder.path / name, one.peft, one.base), collections)
