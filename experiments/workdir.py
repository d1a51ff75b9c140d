"""The files of a run, and who owns them.

A folder is a run's only if its `settings.json` says so. It is written first, and names
the run's settings and every file that the run has made or is about to. Nothing else is
ever replaced or deleted: where a file of another owner is in the way, the run refuses.
One job at a time works in a folder; of its processes the first one writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from experiments import documents
from experiments.claims import Busy as Busy
from experiments.claims import claim
from experiments.documents import DamagedFile
from experiments.leases import Check
from experiments.preemption import Stop
from experiments.records import identity
from peftjax import storage
from peftjax.parallel.distributed import is_main, led
from peftjax.training.trackers import TENSORBOARD, WANDB

PLAN, SETTINGS, RESULT = "plan.json", "settings.json", "result.json"
METRICS, CHECKPOINTS, MERGED = "metrics.jsonl", "checkpoints", "merged.safetensors"
ADAPTER, BEST, SAMPLES = "adapter", "best", "samples"
COLLECTIONS, MISTAKES = "collections.safetensors", "mistakes.npz"
SEARCH, SUPERNET, RETRAINED = "search.json", "supernet", "retrained"
ARCHIVE, STRUCTURE = "archive.png", "structure.png"
UNFINISHED = (CHECKPOINTS, SEARCH, SUPERNET)
# All that a run ever writes, a search too.
FILES = (
    RESULT,
    *(f"{name}.{kind}" for name in (ADAPTER, BEST) for kind in ("json", "safetensors")),
    *(f"{name}_{COLLECTIONS}" for name in (ADAPTER, BEST)),
    MERGED,
    METRICS,
    ARCHIVE,
    STRUCTURE,
    SAMPLES,
    MISTAKES,
    RETRAINED,
    TENSORBOARD,
    WANDB,
    *UNFINISHED,
    SETTINGS,
)
KIND = "run of peftjax"
REMEDY = "delete it and run experiments.table again"


class ForeignFile(FileExistsError):
    """A file is in the way that is not the run's."""


class RunFolder:
    """The folder of one run.

    Args:
        path: of the folder.
        check: raises `Lost` where the run is no longer ours; asked before any change.

    Raises:
        ForeignFile: its `settings.json` is not a run's, or a file that runs write is
            there and not this one's.
        DamagedFile: `settings.json` is.
    """

    def __init__(self, path: Path, check: Check | None = None):
        self.path = path
        self.check: Check = check or (lambda: None)
        self.settings: dict[str, Any] | None = None
        self.files: set[str] = set()
        if SETTINGS in storage.names(path) and (path / SETTINGS).exists():
            self.settings, self.files = _manifest(path / SETTINGS)
        self._refuse(FILES)

    def held(self, config: Any, resume: bool) -> dict[str, Any] | None:
        """Return the result of a run that is finished here; write nothing.

        Raises:
            FileExistsError: the folder holds a run and `resume` is off, or one of other
                settings.
            DamagedFile: the result is not a whole one of this run.
        """
        own = _settings(config)
        held = any((self.path / name).exists() for name in (RESULT, *UNFINISHED))
        if held and not resume:
            raise FileExistsError(
                f"{self.path}: holds a run; --resume, or --force deletes it"
            )
        if held:
            self._compare(own)
        if not (self.path / RESULT).exists():
            return None
        found = read_result(self.path / RESULT, own)
        self.drop(CHECKPOINTS)  # of a process that died before it could
        return found

    def begin(self, config: Any) -> None:
        """Make the folder a run's: write its settings."""
        self.settings = _settings(config)
        self.own(SETTINGS)

    def asking(self, stop: Stop | None) -> Stop:
        """Return `stop`; the run is first asked whether it is ours yet."""

        def ask() -> bool:
            self.check()
            return stop is not None and stop()

        return ask

    def own(self, *names: str) -> None:
        """Note that files are the run's, before they are written.

        Raises:
            ForeignFile: one is there already and is not.
        """
        self._refuse(names)
        if not self.files.issuperset(names) or SETTINGS in names:
            self.files |= set(names)
            self._note()

    def drop(self, *names: str) -> None:
        """Delete files, those of them that are the run's."""
        dropped = [name for name in names if name in self.files]
        self.check()
        for name in dropped if is_main() else ():
            storage.remove(self.path / name)
        self.files -= set(dropped)
        if dropped and SETTINGS not in dropped:
            self._note()

    def clear(self) -> None:
        """Delete what the run left, and nothing else."""
        # The result first: a run that has one is finished. The settings last: without
        # them nothing is the run's.
        for name in FILES:
            self.drop(name)

    def _note(self) -> None:
        self.check()
        facts = {"settings": self.settings, "files": sorted(self.files)}
        if is_main():
            storage.write_json(self.path / SETTINGS, {"kind": KIND, **facts})

    def _refuse(self, names: tuple[str, ...]) -> None:
        present = storage.names(self.path) if names and is_main() else set()
        for name in names:
            if name in present and name not in self.files:
                raise ForeignFile(
                    f"{self.path / name}: not a file of a run of this folder, and a "
                    "run would replace it: move it, or choose another --workdir"
                )

    def _compare(self, own: Mapping[str, Any]) -> None:
        lines = differences(own, self.settings or {})
        if lines:
            raise FileExistsError(
                f"{self.path / SETTINGS}: the folder's run is of other settings; give "
                "those, another --workdir, or --force, which deletes it\n  "
                + "\n  ".join(lines)
            )


@contextmanager
def claimed(path: Path, *, wait: bool = False) -> Iterator[RunFolder]:
    """Yield a run's folder that is ours alone until the end of the block.

    Args:
        path: of the folder.
        wait: as `claim` takes it.

    Raises:
        Busy: another process is at it.
        ForeignFile, DamagedFile: as `RunFolder`; then nothing is left in the folder.
    """
    with ExitStack() as stack:
        check: Check | None = None

        def ours() -> bool:
            nonlocal check
            RunFolder(path)  # a lock file is no guest in a folder of something else
            check = stack.enter_context(claim(path, wait=wait))
            return check is not None

        if not led(ours):
            raise Busy(f"{path}: another process is at this run")
        folder = RunFolder(path, check)
        led(lambda: None)  # all have read before one writes
        yield folder


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return a line per setting that differs."""
    return [
        f"{key}: expected {expected.get(key)!r}, found {found.get(key)!r}"
        for key in sorted({**expected, **found})
        if expected.get(key) != found.get(key)
    ]


def read_result(file: Path, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a whole result of known status.

    Args:
        file: the result.
        own: the `identity` of the run that it has to be of.

    Raises:
        DamagedFile: it lacks something, or is of another run.
    """
    found = documents.read(file, documents.Result, REMEDY)
    if own is not None:
        if "config" not in found:
            raise DamagedFile(f"{file}: expected the config of a run; {REMEDY}")
        if lines := differences(own, identity(found["config"])):
            raise DamagedFile(f"{file}: of another run: {lines[0]}; {REMEDY}")
    return found


def finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Return scores as JSON has them: None for one that is not finite."""
    return {key: x if math.isfinite(x) else None for key, x in scores.items()}


def _settings(config: Any) -> dict[str, Any]:
    """Return the identity of a run as `settings.json` has it."""
    return json.loads(json.dumps(identity(config)))


def _manifest(file: Path) -> tuple[dict[str, Any], set[str]]:
    remedy = "choose another --workdir"
    found = documents.read(file, documents.Manifest, remedy)
    if strangers := sorted(set(found["files"]).difference(FILES)):
        raise DamagedFile(f"{file}: {strangers[0]!r} is no file of a run; {remedy}")
    return found["settings"], {*found["files"], SETTINGS}
