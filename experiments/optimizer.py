"""AdamW or SGD with a schedule whose numbers are data, not constants of the program."""

from __future__ import annotations

from typing import Any

import optax
from ml_collections import ConfigDict

from experiments.arguments import known
from peftjax.training.optimizer import make_optimizer
from peftjax.training.schedules import (
    constant,
    epoch_cosine,
    warmup_cosine,
    warmup_linear,
)

SCHEDULES = ("cosine", "linear", "constant", "epoch_cosine")


def optimizer(settings: ConfigDict, steps: int, steps_per_epoch: int) -> Any:
    """Return the optimizer of one run.

    Learning rate, decay, length and warm-up lie in the optimizer's state, so that one
    compiled step serves every task, seed, learning rate and decay.

    Args:
        settings: `schedule` (of `SCHEDULES`), `lr`, `warmup` (a share of the run below
            1, else steps; of `epoch_cosine` epochs), `weight_decay`, and optionally
            `optimizer` (`"adamw"`, the default, or `"sgd"`), `momentum`, `clip`, `eps`,
            `no_decay` (patterns, as `make_optimizer` takes them), `groups` (pairs of a
            pattern and a factor of the rate there) and, of `epoch_cosine`, `period`,
            `start` and `floor`.
        steps: updates of the run.
        steps_per_epoch: updates of an epoch.
    """
    known(settings.schedule, SCHEDULES, "schedule")
    optional = ("eps", "clip", "momentum", "no_decay")
    name = settings.get("optimizer", "adamw")
    others = {key: settings[key] for key in optional if settings.get(key)}

    # optax reads the names of what it injects off the signature.
    def build(peak, decay, steps, warmup, steps_per_epoch):
        def rate(factor):
            return _rate(settings, factor * peak, steps, warmup, steps_per_epoch)

        groups = {pattern: rate(x) for pattern, x in settings.get("groups", ())}
        return make_optimizer(
            name, rate(1.0), weight_decay=decay, groups=groups, **others
        )

    inject: Any = optax.inject_hyperparams(build)
    own = numbers(settings, steps, steps_per_epoch)
    return inject(**{name: float(number) for name, number in own.items()})


def schedule(settings: ConfigDict, steps: int, steps_per_epoch: int) -> optax.Schedule:
    """Return the learning rate of `optimizer` as a function of the update.

    Raises:
        ValueError: the warm-up is as long as the run.
    """
    own = numbers(settings, steps, steps_per_epoch)
    own.pop("decay")
    return _rate(settings, **own)


def numbers(settings: ConfigDict, steps: int, steps_per_epoch: int) -> dict[str, Any]:
    """Return the numbers that lie in the optimizer's state."""
    warmup = settings.warmup
    if settings.schedule != "epoch_cosine" and warmup < 1:
        warmup = int(warmup * steps)
    return {
        "peak": settings.lr,
        "decay": settings.weight_decay,
        "steps": steps,
        "warmup": warmup,
        "steps_per_epoch": steps_per_epoch,
    }


def _rate(settings, peak, steps, warmup, steps_per_epoch) -> optax.Schedule:
    optional = ("period", "start", "floor")
    shape = {key: settings[key] for key in optional if key in settings}
    match known(settings.schedule, SCHEDULES, "schedule"):
        case "cosine":
            return warmup_cosine(peak, steps, warmup)
        case "linear":
            return warmup_linear(peak, steps, warmup)
        case "constant":
            return constant(peak)
    return epoch_cosine(peak, steps_per_epoch, warmup=warmup, **shape)
