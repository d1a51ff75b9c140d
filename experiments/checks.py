"""Settings that would train nothing, or backwards, are refused before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from ml_collections import ConfigDict

from experiments.arguments import known
from peftjax.data.pipeline import steps_per_epoch

SELECTIONS = ("last", "best_on_validation", "best_on_test")
SEEDS = 2**32  # what every generator of random numbers takes


class UnfitSettings(ValueError):
    """A setting is of the wrong type, or a run could not be done with it."""


Test = Callable[[Any], bool]
WHOLE = "a whole number"


def _whole(low: int, high: float = math.inf) -> Test:
    def test(value: Any) -> bool:
        return type(value) is int and low <= value < high

    return test


def _real(low: float, above: bool = False) -> Test:
    def test(value: Any) -> bool:
        number = type(value) in (int, float) and math.isfinite(value)
        return number and (value > low if above else value >= low)

    return test


# Setting, what it has to be, in words.
REQUIRED: dict[str, tuple[Test, str]] = {
    "seed": (_whole(0, SEEDS), f"{WHOLE} from 0 to {SEEDS - 1}"),
    "train.epochs": (_whole(1), f"{WHOLE}, at least 1"),
    "train.batch": (_whole(1), f"{WHOLE}, at least 1"),
    "train.eval_batch": (_whole(1), f"{WHOLE}, at least 1"),
    "train.eval_epochs": (_whole(1), f"{WHOLE}, at least 1"),
    "optim.lr": (_real(0, above=True), "a finite number above 0"),
    "optim.weight_decay": (_real(0), "a finite number, at least 0"),
    "optim.warmup": (_real(0), "a finite number, at least 0"),
}
OPTIONAL: dict[str, tuple[Test, str]] = {
    "parallel.data": (_whole(0), f"{WHOLE}, at least 0"),
    "parallel.fsdp": (_whole(0), f"{WHOLE}, at least 0"),
    "parallel.accumulate": (_whole(1), f"{WHOLE}, at least 1"),
}
# Package and extra of each tracker.
TRACKERS = {"tensorboard": ("tensorboardX", "train"), "wandb": ("wandb", "wandb")}
GROUPS = ("train", "optim", "paths")
NAMES = ("name", "family", "task", "method", "seed", "selection", "rules")


def check(config: ConfigDict, where: str) -> ConfigDict:
    """Return the configuration of a run whose settings are possible.

    Args:
        config: of the run.
        where: the file it comes from, for the message.

    Raises:
        UnfitSettings: a setting is missing or impossible, or its package absent.
        UnknownName: of a selection or a tracker.
    """
    missing = [key for key in (*NAMES, *GROUPS) if key not in config]
    missing += [key for key in REQUIRED if _get(config, key) is None]
    if missing:
        raise UnfitSettings(f"{where}: the configuration lacks {', '.join(missing)}")
    for key, (possible, words) in {**REQUIRED, **OPTIONAL}.items():
        value = _get(config, key)
        if not possible(value) and not (value is None and key in OPTIONAL):
            raise UnfitSettings(f"{where}: {key}={value!r}: expected {words}")
    known(config.selection, SELECTIONS, "selection")
    for name in config.get("trackers", ()):
        package, extra = TRACKERS[known(name, TRACKERS, "tracker")]
        if find_spec(package) is None:
            raise UnfitSettings(
                f"{where}: trackers={name}: needs {package}: pip install "
                f"'peftjax[{extra}]'"
            )
    return config


def length(config: ConfigDict, examples: int) -> tuple[int, int]:
    """Return the steps of a run and of an epoch.

    Raises:
        UnfitSettings: the batch is larger than the data, or the warm-up as long as the
            run.
    """
    where = f"{config.name}, {config.task}, {config.method}"
    batch, optim = config.train.batch, config.optim
    if batch > examples:
        raise UnfitSettings(
            f"{where}: train.batch={batch}: expected at most the {examples} training "
            "examples"
        )
    epoch = steps_per_epoch(examples, batch)
    steps = config.train.epochs * epoch
    # Of epoch_cosine the warm-up is in epochs, elsewhere in steps or a share below 1.
    whole = config.train.epochs if optim.schedule == "epoch_cosine" else steps
    if optim.warmup >= max(whole, 1) and optim.schedule != "constant":
        raise UnfitSettings(
            f"{where}: optim.warmup={optim.warmup}: expected less than the run, "
            f"{config.train.epochs} epochs or {steps} steps"
        )
    return steps, epoch


def _get(config: ConfigDict, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, ConfigDict) else None
    return value
