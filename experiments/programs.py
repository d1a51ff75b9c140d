"""The compiled programs of runs: one for each thing done, shared by value.

Runs of one model, one loss and one method setting share their programs: weights, seed,
learning rate, warm-up and length are arguments. So a further seed, or a further task of
the same shapes, compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

import peftjax as pj
from experiments.checks import UnfitSettings
from experiments.measure import bound, plain
from experiments.meshes import accumulate_of, mesh_of
from experiments.optimizer import optimizer
from experiments.records import digest
from peftjax.parallel.sharding import replicated
from peftjax.search import allocate
from peftjax.training.evaluation import make_eval
from peftjax.training.state import TrainState, fresh_state
from peftjax.training.step import make_step

if TYPE_CHECKING:
    from experiments.tasks.task import Outline

UpdateFrozen = Callable[..., Any]


@dataclass(frozen=True)
class Programs:
    """What every run of one model and one method setting shares, compiled once.

    Attributes:
        peft: the adapted model.
        mesh: of all.
        start: `f(seed, variables, numbers, adapters)`, the state before the first
            update; `adapters` None draws fresh ones.
        step: of training.
        eval_step: of evaluation.
        bound: the frozen model's step, which the step is timed against.
        plain: the evaluation of the frozen model, or of a merged one.
        timings: what was measured of the step, by the shapes of its batch.
    """

    peft: pj.Peft
    mesh: Any
    start: Callable[..., TrainState]
    step: Any
    eval_step: Any
    bound: Callable[..., Any]
    plain: Callable[..., Any]
    timings: dict[Any, dict[str, float]] = field(default_factory=dict)


class ProgramCache:
    """The programs of the runs of a table.

    Args:
        mesh: of all programs; by default what each configuration says.
        update_frozen: of a planned model, what moves its frozen leaves, as `make_step`
            takes it.
    """

    def __init__(
        self,
        mesh: Any = None,
        update_frozen: Callable[[pj.Peft], UpdateFrozen] | None = None,
    ):
        self.mesh = mesh
        self.update_frozen = update_frozen
        self._programs: dict[Any, Programs] = {}
        self._frozen: dict[Any, tuple[Callable[..., Any], Callable[..., Any]]] = {}

    def of(self, config: ConfigDict, outline: Outline, steps: int) -> Programs:
        """Return the programs of a run; weights, seed and rate are arguments.

        Raises:
            UnfitSettings: a schedule of ranks is not of as many updates as the run.
        """
        rules = _timed(config, steps)
        method = digest(rules, _shape_of(config.optim))
        mesh = mesh_of(config) if self.mesh is None else self.mesh
        key = outline.model, outline.loss, method, mesh, accumulate_of(config)
        if key not in self._programs:
            if any(other[2] != method for other in self._programs):
                self._programs.clear()  # tables go method by method; keep memory flat
            self._programs[key] = self._compiled(config, outline, rules, mesh)
        return self._programs[key]

    def _compiled(
        self,
        config: ConfigDict,
        outline: Outline,
        rules: dict[str, pj.Method],
        mesh: Any,
    ) -> Programs:
        model, example = outline.model, outline.example
        peft = pj.adapt(model.apply, outline.abstract(), *example, rules=rules)
        frozen = model, outline.loss
        if frozen not in self._frozen:
            self._frozen[frozen] = (
                bound(model, outline.loss, outline.entry),
                plain(model, outline.outputs),
            )
        moves = self.update_frozen
        if any(isinstance(method, pj.AdaLoRA) for method in rules.values()):
            moves = allocate
        for pattern, method in rules.items():
            if moves is None and method.moved_by:
                raise UnfitSettings(
                    f"{config.name}, {config.method}: {pattern}: {method}: expected a "
                    "method that trains alone; experiments.search trains a supernet"
                )
        descent = optimizer(config.optim, 2, 1)
        step = make_step(
            peft,
            descent,
            outline.loss,
            mesh,
            accumulate=accumulate_of(config),
            update_frozen=moves and moves(peft),
        )
        return Programs(
            peft,
            mesh,
            starter(peft, descent, mesh, outline.mutable),
            step,
            make_eval(peft, outline.outputs, mesh),
            *self._frozen[frozen],
        )


def starter(
    peft: pj.Peft,
    descent: optax.GradientTransformation,
    mesh: Any,
    mutable: tuple[str, ...] = (),
) -> Callable[..., TrainState]:
    """Return the compiled `f(seed, variables, numbers, adapters=None)`.

    Args:
        peft: what `adapt` returned.
        descent: of `optimizer`; `numbers` are those of its schedule.
        mesh: over which the state is replicated.
        mutable: collections of the variables that training moves.
    """

    def start(seed: Any, variables: Any, numbers: Mapping[str, Any], adapters: Any):
        key = jax.random.key(seed)
        state = fresh_state(peft, descent, key, variables, adapters, mutable)
        settled = state.opt_state._replace(hyperparams=dict(numbers))
        # A copy: donation of the state must not delete the caller's adapters.
        return jax.tree.map(jnp.copy, state._replace(opt_state=settled))

    compiled = jax.jit(start, out_shardings=replicated(mesh))

    def call(seed: int, variables: Any, numbers: Mapping[str, float], adapters=None):
        data = {name: np.float32(number) for name, number in numbers.items()}
        return compiled(np.uint32(seed), variables, data, adapters)

    return call


def _timed(config: ConfigDict, steps: int) -> dict[str, pj.Method]:
    """Return the rules of a run, AdaLoRA's with the length of its schedule."""
    rules = dict(config.rules)
    for pattern, method in rules.items():
        if not isinstance(method, pj.AdaLoRA):
            continue
        where = f"{config.name}, {config.method}: {pattern}"
        if method.total_steps not in (None, steps):
            raise UnfitSettings(
                f"{where}: total_steps={method.total_steps}: expected {steps}, the "
                "updates of the run; leave it out"
            )
        try:
            rules[pattern] = replace(method, total_steps=steps)
        except ValueError as error:
            raise UnfitSettings(f"{where}: {error}") from error
    return rules


def _shape_of(optim: ConfigDict) -> dict[str, Any]:
    """Return the settings that are constants of the program."""
    data = ("lr", "warmup", "weight_decay")
    return {key: value for key, value in optim.items() if key not in data}
