"""Trackers that a configuration names: `--config.trackers=tensorboard,wandb`."""

from __future__ import annotations

from functools import partial

from ml_collections import ConfigDict

from experiments.records import plain, title
from experiments.workdir import RunFolder
from peftjax.training.trackers import TENSORBOARD, WANDB, TensorBoard, Tracker, WandB


def trackers(config: ConfigDict, folder: RunFolder) -> list[Tracker]:
    """Return the trackers of a run; their files are the run's.

    Raises:
        ForeignFile: a file of another owner is in the way of one.
    """
    names = config.get("trackers", ())
    folder.own(*names)  # each writes into a folder of its name
    facts = {"project": config.name, "name": title(config), "config": plain(config)}
    every = {TENSORBOARD: TensorBoard, WANDB: partial(WandB, **facts)}
    return [every[name] for name in names]
