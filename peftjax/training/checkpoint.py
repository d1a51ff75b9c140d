"""Checkpoints of the train state and the place in the data; never of the base."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.parallel.distributed import is_main
from peftjax.training.state import TrainState

SUMS = "SHA256SUMS"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is truncated or was changed after it was written."""


class Checkpoints:
    """The checkpoints of one run, `directory/<step>/`, written by orbax.

    Each is closed by a list of the digests of its files, in the format of `sha256sum`,
    written last: without it a checkpoint does not count, and a damaged file is found
    before anything is read from it.

    Args:
        directory: created when the first checkpoint is saved.
        keep: how many of the latest to keep; at least 1.

    Raises:
        ImportError: orbax-checkpoint is absent.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep={keep}: expected at least 1")
        try:
            from orbax.checkpoint import v1 as ocp
        except ImportError as error:
            raise ImportError(
                "checkpoints need orbax-checkpoint: pip install orbax-checkpoint"
            ) from error
        self.directory = Path(directory).absolute()
        self._ocp: Any = ocp
        self._keep = keep

    def path(self, step: int) -> Path:
        """Return the folder of one checkpoint."""
        return self.directory / str(step)

    def steps(self) -> list[int]:
        """Return the steps of which there is a checkpoint, ascending."""
        return sorted(
            int(sums.parent.name) for sums in self.directory.glob(f"*/{SUMS}")
        )

    def latest(self) -> int | None:
        """Return the last of `steps()`, or None."""
        return max(self.steps(), default=None)

    def save(self, state: TrainState, data: Any) -> int:
        """Write the state and `data.get_state()` under the state's step; return it.

        Raises:
            OSError: it cannot be written; the disk is full, for one.
        """
        step = int(state.step)
        try:
            self._write(step, _arrays(state), {"data": data.get_state()})
        except (OSError, ValueError) as error:  # tensorstore raises the latter
            told = str(error).splitlines()[0]
            raise OSError(
                f"{self.path(step)}: checkpoint not written: {told}"
            ) from error
        if is_main():
            _close(self.path(step))
        return step

    def _write(self, step: int, arrays: Mapping[str, jax.Array], more: Any) -> None:
        policy = self._ocp.training.preservation_policies.LatestN(self._keep)
        with self._ocp.training.Checkpointer(
            self.directory, preservation_policy=policy, cleanup_tmp_directories=True
        ) as checkpointer:
            checkpointer.save(
                step, arrays, force=True, overwrite=True, custom_metadata=more
            )

    def restore(
        self, state: TrainState, data: Any, *, fallback: bool = False
    ) -> TrainState:
        """Return the latest checkpoint's state and move `data` to its place.

        Args:
            state: one of the same run's structure, shapes, dtypes and placement.
            data: an iterator of the same data; its `set_state` is called.
            fallback: where the latest is damaged, take the one before and delete the
                damaged one.

        Raises:
            FileNotFoundError: there is none.
            DamagedCheckpoint: the latest is damaged (with `fallback`, all are).
            CheckpointError: it is of other adapters or another optimizer.
        """
        step = self._intact(fallback)
        expected = _arrays(state)
        found = self._ocp.metadata(self.path(step))
        _compare(self.path(step), expected, found.metadata)
        abstract = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            for name, x in expected.items()
        }
        arrays = self._ocp.load(self.path(step), abstract)
        for later in self.steps():
            if later > step and is_main():
                shutil.rmtree(self.path(later))
        data.set_state(found.custom_metadata["data"])
        return _rebuild(state, arrays)

    def _intact(self, fallback: bool) -> int:
        """Return the latest step whose files are as they were written."""
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"{self.directory}: no checkpoint to resume from")
        damage = {}
        for step in reversed(steps if fallback else steps[-1:]):
            damage[step] = _damage(self.path(step))
            if damage[step] is None:
                return step
        advice = "there is no intact one: delete the folder and start again"
        if steps[:-1] and not fallback:
            advice = (
                f"resume with fallback=True to continue from step {steps[-2]}, which "
                "deletes the damaged one"
            )
        raise DamagedCheckpoint(
            f"{self.path(steps[-1])}: the checkpoint of step {steps[-1]} is damaged: "
            f"{damage[steps[-1]]}; {advice}"
        )


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _close(folder: Path) -> None:
    """Write the digests of all files of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{_sum(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    partial = folder / f"{SUMS}.partial"
    partial.write_text("".join(lines))
    os.replace(partial, folder / SUMS)


def _damage(folder: Path) -> str | None:
    """Return what is wrong with the files of a folder, or None."""
    lines = (folder / SUMS).read_text().splitlines()
    if not lines:
        return f"{SUMS} is empty"
    for line in lines:
        digest, _, name = line.partition("  ")
        path = folder / name
        if not name or folder not in path.resolve().parents:
            return f"{SUMS} is not a list of files"
        if not path.is_file():
            return f"{name} is missing"
        if _sum(path) != digest:
            return f"{name} is truncated or changed (now {path.stat().st_size} bytes)"
    return None


def _arrays(state: TrainState) -> dict[str, jax.Array]:
    """Return the state as `{path: array}`, so that what is missing has a name."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(state)
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): _plain(leaf)
        for keys, leaf in pairs
    }


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _rebuild(state: TrainState, arrays: Mapping[str, jax.Array]) -> TrainState:
    def like(old: jax.Array, new: jax.Array) -> jax.Array:
        if _is_key(old):
            return jax.random.wrap_key_data(new, impl=jax.random.key_impl(old))
        return new

    leaves, structure = jax.tree.flatten(state)
    restored = [arrays[name] for name in _arrays(state)]
    return jax.tree.unflatten(structure, map(like, leaves, restored))


def _compare(path: Path, expected: Mapping[str, jax.Array], found: Mapping[str, Any]):
    """Raise CheckpointError where names, shapes or dtypes differ."""
    lines = [f"missing: {name}" for name in expected if name not in found]
    lines += [f"unexpected: {name}" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        wanted, other = (f"{x.dtype}{x.shape}" for x in (expected[name], found[name]))
        if wanted != other:
            lines.append(f"{name}: expected {wanted}, found {other}")
    if lines:
        rest = [f"... and {len(lines) - 10} more"] if len(lines) > 10 else []
        raise CheckpointError(
            f"{path}: this checkpoint is of another run; resume with the rules and the "
            "optimizer it was saved with, or choose another folder:\n  "
            + "\n  ".join(sorted(lines)[:10] + rest)
        )
