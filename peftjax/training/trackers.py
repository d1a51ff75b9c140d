"""Where the numbers of a run are shown: TensorBoard, Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from peftjax import storage

TENSORBOARD, WANDB = "tensorboard", "wandb"  # folders in that of the run


class Writer(Protocol):
    """What takes the records of a run."""

    def write(self, record: dict[str, Any]) -> None:
        """Take one record; it has a `"step"`."""
        ...

    def close(self) -> None:
        """Leave nothing unwritten."""
        ...


# Given the run's folder, and the last step before a resumption.
Tracker = Callable[[Path, int], Writer]


def _numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield every number of a record but its step, nested ones as `outer/inner`."""
    for name, value in record.items():
        values = value if isinstance(value, dict) else {"": value}
        for inner, number in values.items() if name != "step" else ():
            yield f"{name}/{inner}".rstrip("/"), number


class TensorBoard:
    """Scalars in `workdir/tensorboard`, through tensorboardX.

    Args:
        workdir: of the run.
        after: later steps that are there are dropped.

    Raises:
        ImportError: tensorboardX is absent.
    """

    def __init__(self, workdir: Path, after: int = 0):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard needs tensorboardX: pip install 'peftjax[train]'"
            ) from error
        self._writer = SummaryWriter(str(workdir / TENSORBOARD), purge_step=after + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Write every number of a record, nested ones as `outer/inner`."""
        for tag, number in _numbers(record):
            self._writer.add_scalar(tag, number, record["step"])
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WandB:
    """One run of Weights & Biases, with its files in `workdir/wandb`.

    A resumed run goes on under the id that its folder has; what it logs again is equal,
    and the service keeps the first. `WANDB_MODE=offline` sends nothing.

    Args:
        workdir: of the run.
        after: the last step that stays.
        project: its project.
        name: how it is shown there.
        config: its settings.

    Raises:
        ImportError: wandb is absent.
        ValueError: the folder is in a bucket, where wandb cannot write.
    """

    def __init__(
        self,
        workdir: Path,
        after: int = 0,
        *,
        project: str,
        name: str,
        config: Mapping[str, Any],
    ):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(
                "Weights & Biases needs wandb: pip install 'peftjax[wandb]'"
            ) from error
        if storage.in_bucket(workdir):
            raise ValueError(
                f"{workdir}: wandb writes into a folder of this machine, and this is a "
                "bucket; use TensorBoard, or a workdir here"
            )
        workdir.mkdir(parents=True, exist_ok=True)
        earlier = sorted((workdir / WANDB).glob("*run-*-*"))
        self._run = wandb.init(
            project=project,
            name=name,
            config=dict(config),
            dir=workdir,
            id=earlier[-1].name.rpartition("-")[2] if earlier and after else None,
            resume="allow",
            reinit="create_new",  # a process may do several runs at a time
            settings=wandb.Settings(console="off", silent=True),
        )

    def write(self, record: dict[str, Any]) -> None:
        """Log every number of a record, nested ones as `outer/inner`."""
        self._run.log(dict(_numbers(record)), step=record["step"])

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
