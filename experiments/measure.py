"""What a step costs relative to the frozen model: time, FLOPs, temporary memory.

The bound is the frozen model's forward pass and its gradient with respect to an array
that is added to the input of the first block, the position embeddings of a ViT for one:
what the gradient of an adapter in that block has to pass through. (With respect to the
images it would hold the transposed convolution of the patches too, which is slow on a
CPU and which no adapter needs.)
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from peftjax.training.evaluation import EvalStep, Outputs
from peftjax.training.losses import cross_entropy
from peftjax.training.update import Loss, loss_parts


def bound(model: nn.Module, loss: Loss, entry: str) -> Any:
    """Return the jitted `f(variables, batch, seed)`: loss and input gradient.

    Args:
        model: the frozen model.
        loss: as `make_step` takes it.
        entry: path of the parameter that is added to the input of the first block.
    """

    def run(variables, batch, seed):
        key = jax.random.key(seed)
        flat = flatten_dict(variables["params"], sep="/")

        def mean(leaf):
            params = unflatten_dict({**flat, entry: leaf}, sep="/")
            apply = functools.partial(model.apply, {**variables, "params": params})
            weighted, _ = loss_parts(loss(apply, batch, key))
            return (weighted.losses * weighted.weights).mean()

        return jax.value_and_grad(mean)(flat[entry])

    return jax.jit(run)


def plain(model: nn.Module, outputs: Outputs) -> EvalStep:
    """Return the jitted evaluation of the model alone, as `evaluate` takes it."""

    def run(variables, batch):
        return outputs(functools.partial(model.apply, variables), batch)

    compiled = jax.jit(run)
    return lambda variables, adapters, batch: compiled(variables, batch)


def adapted(peft: Any) -> Any:
    """Return the jitted `f(variables, adapters, images, labels)`: loss and gradient."""

    def run(variables, adapters, images, labels):
        trainable, frozen = peft.partition(adapters)

        def loss(trainable):
            both = peft.combine(trainable, frozen)
            logits = peft.apply(variables, both, images)
            return cross_entropy(logits, labels).mean() + peft.penalty(both)

        return jax.value_and_grad(loss)(trainable)

    return jax.jit(run)


def analysis(compiled: Any) -> dict[str, float]:
    """Return XLA's own count of FLOPs and its temporary bytes."""
    return {
        "flops": compiled.cost_analysis()["flops"],
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def interleave(
    calls: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Call each in turn, round after round, and return their seconds.

    Every other round runs backwards, so that none always follows the same neighbour.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + warmup):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            jax.block_until_ready(calls[name]())
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, to: str) -> float:
    """Return the median over rounds of one call's time over another's."""
    return median(a / b for a, b in zip(seconds[name], seconds[to]))
