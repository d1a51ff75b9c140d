"""Checkpoints of the train state and the place in the data; never of the base."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from peftjax import storage
from peftjax.errors import brief
from peftjax.parallel.distributed import is_main
from peftjax.parallel.sharding import put
from peftjax.training import sums
from peftjax.training.errors import CheckpointError as CheckpointError
from peftjax.training.errors import DamagedCheckpoint as DamagedCheckpoint
from peftjax.training.state import TrainState

# One at a time in a process: orbax knows by a number of the process which operation
# makes a folder, and two runs in two threads would take each other's.
_WRITING = threading.Lock()


class Checkpoints:
    """The checkpoints of one run, `directory/<step>/`, written by orbax.

    Each is closed by a list of the digests of its files, in the format of `sha256sum`,
    written last: without it a checkpoint does not count, and a damaged file is found
    before anything is read from it. Writing goes on beside the training; `wait` ends
    when all is written.

    Args:
        directory: created when the first checkpoint is saved; `gs://` too. Of `s3://`,
            which orbax does not write, checkpoints are made here and uploaded, by jobs
            of one process.
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
                "checkpoints need orbax-checkpoint: pip install 'peftjax[train]'"
            ) from error
        self.directory = place = storage.absolute(directory)
        # orbax writes to disks and to gs:// only
        self._via_disk = storage.in_bucket(place) and not str(place).startswith("gs:")
        if self._via_disk and jax.process_count() > 1:
            raise CheckpointError(
                f"{directory}: checkpoints of several processes need gs:// or a disk "
                "that all of them share"
            )
        self._ocp: Any = ocp
        self._keep = keep
        self._pending: Future[None] | None = None

    def path(self, step: int) -> Path:
        """Return the folder of one checkpoint."""
        return self.directory / str(step)

    def steps(self) -> list[int]:
        """Return the steps of which there is a checkpoint, ascending.

        Folders of other names (a copy `38.bak`) are no checkpoints.
        """
        self.wait()
        return self._closed()

    def latest(self) -> int | None:
        """Return the last of `steps()`, or None."""
        return max(self.steps(), default=None)

    def save(self, state: TrainState, data: Any) -> int:
        """Write the state and `data.get_state()` under the state's step; return it.

        When it returns the state may change: the rest is done by a thread.

        Raises:
            OSError: it, or the one before, cannot be written; the disk is full, for
                one.
        """
        self.wait()
        step, more = int(state.step), {"data": data.get_state()}
        if is_main():
            self._make_way(step)
        worker = ThreadPoolExecutor(1, "checkpoint")
        made = Path(tempfile.mkdtemp(), "new") if self._via_disk else self.path(step)
        _WRITING.acquire()
        try:
            with self._naming(step):
                writing = self._ocp.save_async(
                    made, _arrays(state), overwrite=True, custom_metadata=more
                )
            self._pending = worker.submit(self._finish, step, writing, made)
        except BaseException:
            _WRITING.release()
            raise
        worker.shutdown(wait=False)
        return step

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            OSError: it cannot be.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _closed(self) -> list[int]:
        steps = (int(name) for name in storage.names(self.directory) if _is_step(name))
        return sorted(step for step in steps if (self.path(step) / sums.NAME).exists())

    def _make_way(self, step: int) -> None:
        """Delete an earlier checkpoint of the step, and what killed processes left."""
        whole = {str(other) for other in self._closed() if other != step}
        for name in storage.names(self.directory) - whole:
            if _is_step(name) or ".orbax-checkpoint-tmp" in name:
                storage.remove(self.directory / name)

    def _finish(self, step: int, writing: Any, made: Path) -> None:
        """Wait for orbax, close the checkpoint and delete old ones."""
        with self._naming(step):
            try:
                writing.result()
            finally:
                _WRITING.release()
            if self._via_disk:
                with storage.replacing_folder(self.path(step)) as new:
                    shutil.copytree(made, new, dirs_exist_ok=True)
                shutil.rmtree(made.parent)
            if is_main():
                sums.close(self.path(step))
                for old in self._closed()[: -self._keep]:
                    storage.remove(self.path(old))

    @contextmanager
    def _naming(self, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # tensorstore raises the latter
            raise OSError(
                f"{self.path(step)}: checkpoint not written: {brief(error)}"
            ) from error

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
        step, arrays, place = self._intact(_arrays(state), fallback)
        try:
            data.set_state(_as_place(place, data.get_state()))
        except Exception as error:
            raise CheckpointError(
                f"{self.path(step)}: not a place in this data ({brief(error)})"
            ) from error
        for later in self.steps() if is_main() else ():
            if later > step:
                storage.remove(self.path(later))
        return _rebuild(state, arrays)

    def _intact(
        self, expected: Mapping[str, jax.Array], fallback: bool
    ) -> tuple[int, dict[str, jax.Array], Any]:
        """Return the latest step whose files are as they were written, and them."""
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"{self.directory}: no checkpoint to resume from")
        first = None
        for step in reversed(steps if fallback else steps[-1:]):
            try:
                return step, *self._read(self.path(step), expected)
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

    def _read(
        self, folder: Path, expected: Mapping[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], Any]:
        """Return the arrays by path, and the place in the data."""
        folder = storage.local(folder) if self._via_disk else folder
        sums.check(folder)
        abstract = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            for name, x in expected.items()
        }
        # The sums may have been made anew over files of any content.
        try:
            found = self._ocp.metadata(folder)
            place = found.custom_metadata["data"]
            _compare(folder, expected, found.metadata)
            return self._ocp.load(folder, abstract), place
        except CheckpointError:
            raise
        except Exception as error:
            raise DamagedCheckpoint(f"not readable ({brief(error)})") from error


def _as_place(found: Any, like: Any) -> Any:
    """Return a place in the data if it is made as another one is: counts by name."""
    if isinstance(like, Mapping):
        if not isinstance(found, Mapping) or found.keys() != like.keys():
            raise ValueError(f"expected {sorted(like)}, found {found!r:.80}")
        return {key: _as_place(found[key], like[key]) for key in like}
    if isinstance(like, int) and (type(found) is not int or found < 0):
        raise ValueError(f"expected a count, found {found!r:.80}")
    return found


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal()


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
