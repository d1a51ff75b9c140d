"""Checkpoints of the train state and the place in the data; never of the base."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax import storage
from peftjax.errors import brief
from peftjax.parallel.distributed import is_main
from peftjax.parallel.sharding import put
from peftjax.training.errors import RunFileError
from peftjax.training.state import TrainState

STATE, DATA, SUMS = "state.safetensors", "data.json", "SHA256SUMS"


class CheckpointError(RunFileError):
    """A checkpoint cannot be used."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is truncated or was changed after it was written."""


class Checkpoints:
    """The checkpoints of one run, `directory/<step>/`.

    Each is a folder, written whole or not at all by process 0: the state's arrays by
    path in a safetensors file, the place in the data as JSON, and the digests of both
    in the format of `sha256sum`, so that damage is found before anything is used.

    Args:
        directory: created when the first checkpoint is saved.
        keep: how many of the latest to keep; at least 1.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep={keep}: expected at least 1")
        self.directory = Path(directory).absolute()
        self._keep = keep

    def path(self, step: int) -> Path:
        """Return the folder of one checkpoint."""
        return self.directory / str(step)

    def steps(self) -> list[int]:
        """Return the steps of which there is a checkpoint, ascending.

        Folders of other names (a copy `38.bak`) are no checkpoints.
        """
        names = (sums.parent.name for sums in self.directory.glob(f"*/{SUMS}"))
        steps = (int(name) for name in names if name.isascii() and name.isdecimal())
        return sorted(step for step in steps if (self.path(step) / SUMS).exists())

    def latest(self) -> int | None:
        """Return the last of `steps()`, or None."""
        return max(self.steps(), default=None)

    def save(self, state: TrainState, data: Any) -> int:
        """Write the state and `data.get_state()` under the state's step; return it.

        Raises:
            OSError: it cannot be written, the disk is full, for one; nothing is left
                of it.
        """
        step, place = int(state.step), json.dumps(data.get_state())
        arrays = jax.device_get(_arrays(state))
        try:
            if is_main():
                self._write(step, arrays, place)
        except OSError as error:
            told = str(error).splitlines()[0]
            raise OSError(
                f"{self.path(step)}: checkpoint not written: {told}"
            ) from error
        return step

    def _write(self, step: int, arrays: Mapping[str, np.ndarray], place: str) -> None:
        shutil.rmtree(self.path(step), ignore_errors=True)
        with storage.replacing_folder(self.path(step)) as folder:
            _write(folder / STATE, arrays)
            (folder / DATA).write_text(place + "\n")
            _close(folder)
        for old in self.steps()[: -self._keep]:
            shutil.rmtree(self.path(old))

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
            CheckpointError: it is of other adapters, another optimizer or other data.
        """
        step, found, place = self._intact(fallback)
        _compare(self.path(step), _arrays(state), found)
        try:
            data.set_state(place)
        except Exception as error:
            raise CheckpointError(
                f"{self.path(step) / DATA}: not a place in this data ({brief(error)})"
            ) from error
        for later in self.steps():
            if later > step and is_main():
                shutil.rmtree(self.path(later))
        return _rebuild(state, found)

    def _intact(self, fallback: bool) -> tuple[int, dict[str, jax.Array], Any]:
        """Return the latest step whose files are as they were written, and them."""
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"{self.directory}: no checkpoint to resume from")
        first = None
        for step in reversed(steps if fallback else steps[-1:]):
            try:
                return step, *_read(self.path(step))
            except DamagedCheckpoint as error:
                first = first or error
        advice = "there is no intact one: delete the folder and start again"
        if steps[:-1] and not fallback:
            advice = (
                f"resume with fallback=True to continue from step {steps[-2]}, which "
                "deletes the damaged one"
            )
        raise DamagedCheckpoint(
            f"{self.path(steps[-1])}: the checkpoint of step {steps[-1]} is damaged: "
            f"{first}; {advice}"
        ) from first


def _write(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file({k: np.asarray(v, order="C") for k, v in arrays.items()}, file)
    except SafetensorError as error:
        raise OSError(f"{file}: not written: {error}") from error


def _read(folder: Path) -> tuple[dict[str, jax.Array], Any]:
    """Return the arrays by path, and the place in the data.

    Raises:
        DamagedCheckpoint: a file is not as it was written, or not what it should be.
    """
    from safetensors.flax import load_file

    name = SUMS
    try:
        sums = _sums(folder)
        for name in (STATE, DATA):
            if _sum(folder / name) != sums[name]:
                size = (folder / name).stat().st_size
                raise DamagedCheckpoint(
                    f"{name} is truncated or changed (now {size} bytes)"
                )
        name = DATA
        place = json.loads((folder / DATA).read_text("utf-8"))
        name = STATE
        return load_file(folder / STATE), place
    except DamagedCheckpoint:
        raise
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{name} is missing") from error
    # The sums may have been made anew over files of any content.
    except Exception as error:
        raise DamagedCheckpoint(f"{name} is not readable ({brief(error)})") from error


def _sums(folder: Path) -> dict[str, str]:
    pairs = [line.split("  ") for line in (folder / SUMS).read_text().splitlines()]
    sums = {pair[1]: pair[0] for pair in pairs if len(pair) == 2}
    if len(sums) != len(pairs) or sums.keys() != {STATE, DATA}:
        raise DamagedCheckpoint(f"{SUMS} is not a list of {STATE} and {DATA}")
    return sums


def _sum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _close(folder: Path) -> None:
    """Write the digests of the files of a checkpoint."""
    lines = [f"{_sum(folder / name)}  {name}\n" for name in (STATE, DATA)]
    (folder / SUMS).write_text("".join(lines))


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
    restored = [
        put(arrays[name], leaf.sharding) for name, leaf in _arrays(state).items()
    ]
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
