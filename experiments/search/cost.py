"""What a table's searches cost, by XLA's count of FLOPs; no weights, no data.

`python -m experiments.search.cost --config configs/vtab/vit_b16.py --rate 8e13`

Of each task: the updates of the supernet on its training examples, the candidates on
the validation split, at most as many as `evolve` evaluates, and one evaluation on test.
The programs are lowered and not compiled, so what XLA would fuse is counted as it
stands. `--rate`, the FLOPs that a chip does in a second, gives chip-hours.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from ml_collections import ConfigDict

import peftjax as pj
from experiments import checks, cli, tasks
from experiments.records import digest
from experiments.search.__main__ import EVOLVE
from experiments.search.supernet import supernet

SEARCHED = "glora_search"
TRAIN, VALIDATION = 800, 200  # of VTAB's thousand, where a task does not say


@dataclass(frozen=True)
class Cost:
    """Of one search.

    Attributes:
        steps: updates of the supernet.
        step: FLOPs of one.
        candidates: at most.
        candidate: FLOPs of one, on the validation split.
    """

    steps: int
    step: float
    candidates: int
    candidate: float

    @property
    def total(self) -> float:
        return self.steps * self.step + self.candidates * self.candidate


def cost(config: ConfigDict, known: dict[Any, tuple[float, float]]) -> Cost:
    """Return the cost of one search.

    `known` keeps what was counted; tasks that differ in their head alone share it.
    """
    config = supernet(config)
    outline = tasks.family(config).outline(config)
    body = {key: v for key, v in config.model.items() if key != "num_classes"}
    key = digest(config.rules, body, config.train.batch)
    if key not in known:
        known[key] = _flops(config, outline)
    step, image = known[key]
    settings = {**EVOLVE, **config.get("search", {})}
    steps, _ = checks.length(config, TRAIN)
    candidates = settings["population"] * (1 + settings["generations"])
    return Cost(steps, step, candidates, image * VALIDATION)


def _flops(config: ConfigDict, outline: Any) -> tuple[float, float]:
    """Return the FLOPs of an update's gradient, and of the forward of one image."""
    variables, (example,) = outline.abstract(), outline.example
    apply, rules = outline.model.apply, dict(config.rules)
    peft = pj.adapt(apply, variables, *outline.example, rules=rules)
    shapes = jax.eval_shape(peft.init, jax.random.key(0), variables)
    trainable, frozen = peft.partition(shapes)

    def loss(trainable: Any, frozen: Any, variables: Any, images: Any) -> jax.Array:
        adapters = peft.combine(trainable, frozen)
        return peft.apply(variables, adapters, images).sum()

    def counted(function: Any) -> float:
        size = (config.train.batch, *example.shape[1:])
        images = jax.ShapeDtypeStruct(size, example.dtype)
        lowered = jax.jit(function).lower(trainable, frozen, variables, images)
        return float(lowered.cost_analysis()["flops"])

    return counted(jax.grad(loss)), counted(loss) / config.train.batch


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Print the cost, as the command line says."""
    parser = cli.Parser(__doc__)
    parser.flag("--rate", type=float, help="FLOPs that a chip does in a second")
    options = parser.read(argv)
    make, known = options.config.config, {}
    names = make(method=SEARCHED).table.tasks
    found = {name: cost(make(task=name, method=SEARCHED), known) for name in names}
    print(f"{'task':24}{'updates':>9}{'FLOPs':>10}{'candidates':>12}{'FLOPs':>10}")
    for name, one in found.items():
        print(
            f"{name:24}{one.steps:9,}{one.step:10.2e}{one.candidates:12,}"
            f"{one.candidate:10.2e}"
        )
    total = sum(one.total for one in found.values())
    training = sum(one.steps * one.step for one in found.values())
    print(f"{len(found)} searches: {total:.2e} FLOPs, {training / total:.0%} training")
    if options.rate:
        hours = total / options.rate / 3600
        print(f"at {options.rate:.1e} FLOPs a second: {hours:.1f} chip-hours a seed")


if __name__ == "__main__":
    sys.exit(main())
