"""What a run is: a model, its data, compiled programs, and the state they train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from ml_collections import ConfigDict

import peftjax as pj
from experiments import checks, tasks
from experiments.measure import bound, forward
from experiments.optimizer import optimizer
from experiments.records import digest
from experiments.tasks.task import Data, Outline, reading
from peftjax.data.pipeline import eval_batches, train_batches
from peftjax.hub import files
from peftjax.parallel.mesh import make_mesh
from peftjax.training.evaluation import evaluate, make_eval
from peftjax.training.state import create_state
from peftjax.training.step import make_step


@dataclass(frozen=True)
class Programs:
    """What every run of one model and one method setting shares, compiled once.

    Attributes:
        peft: the adapted model.
        mesh: of all.
        step: of training.
        eval_step: of evaluation.
        bound: the frozen model's step, which the step is timed against.
        forward: the frozen model.
    """

    peft: pj.Peft
    mesh: Any
    step: Any
    eval_step: Any
    bound: Callable[..., Any]
    forward: Callable[..., Any]


class ProgramCache:
    """The programs of the runs of a table.

    Args:
        mesh: of all programs; by default all devices.
    """

    def __init__(self, mesh: Any = None):
        self.mesh = make_mesh() if mesh is None else mesh
        self._programs: dict[Any, Programs] = {}
        self._frozen: dict[Any, tuple[Callable[..., Any], Callable[..., Any]]] = {}

    def of(self, config: ConfigDict, outline: Outline) -> Programs:
        """Return the programs of a run; weights, seed and rate are arguments."""
        method = digest(config.rules, _shape_of(config.optim))
        key = outline.model, outline.loss, method
        if key not in self._programs:
            if any(other[2] != method for other in self._programs):
                self._programs.clear()  # tables go method by method; keep memory flat
            self._programs[key] = self._compiled(config, outline)
        return self._programs[key]

    def _compiled(self, config: ConfigDict, outline: Outline) -> Programs:
        model, example = outline.model, outline.example
        rules = dict(config.rules)
        peft = pj.adapt(model.apply, outline.abstract(), *example, rules=rules)
        if model not in self._frozen:
            self._frozen[model] = bound(model), forward(model)
        return Programs(
            peft,
            self.mesh,
            make_step(peft, optimizer(config.optim, 2, 1), outline.loss, self.mesh),
            make_eval(peft, outline.outputs, self.mesh),
            *self._frozen[model],
        )


def _shape_of(optim: ConfigDict) -> dict[str, Any]:
    """Return the settings that are constants of the program."""
    data = ("lr", "warmup")
    return {key: value for key, value in optim.items() if key not in data}


class Run:
    """One task, method and seed, ready to train.

    Args:
        config: of the run.
        cache: of the programs of other runs.
        choose: hyperparameters are being chosen: the test split is not read.

    Raises:
        UnfitSettings: the batch or the warm-up does not fit the data.
        UnreadableData: the task's examples cannot be used.
    """

    def __init__(
        self,
        config: ConfigDict,
        cache: ProgramCache | None = None,
        *,
        choose: bool = False,
    ):
        family = tasks.family(config)
        self.config = config
        self.outline: Outline = family.outline(config)
        with reading(f"{config.name}, {config.task}"):
            self.data: Data = family.data(config, choose)
        self.steps, self.steps_per_epoch = checks.length(
            config, len(self.data.train["label"])
        )
        self.base = family.base(config, self.outline)
        self.programs = (cache or ProgramCache()).of(config, self.outline)
        self.peft = self.programs.peft
        self.optimizer = optimizer(config.optim, self.steps, self.steps_per_epoch)
        self.sharded = self.programs.step.shard_base(self.base)

    def state(self) -> Any:
        return create_state(
            self.peft,
            self.optimizer,
            jax.random.key(self.config.seed),
            self.programs.mesh,
            variables=self.base,
            adapters=_started(self) if self.config.get("start_from") else None,
        )

    def batches(self) -> Any:
        return train_batches(
            self.data.train,
            self.config.train.batch,
            seed=self.config.seed,
            lengths=self.data.lengths,
        )

    def outputs(self, adapters: Any, split: Mapping[str, Any]) -> Any:
        """Return logits or scores `[N, ...]` of a split."""
        batches = eval_batches(split, self.config.train.eval_batch)
        found = evaluate(self.programs.eval_step, self.sharded, adapters, batches)
        return found["outputs"]

    def score(self, adapters: Any, split: Mapping[str, Any]) -> dict[str, float]:
        """Return all metrics of a split."""
        return self.outline.score(split["label"], self.outputs(adapters, split))


def _started(one: Run) -> Any:
    """Return the adapters of a run of the task `start_from`, and this run's own head.

    Raises:
        FileNotFoundError: `paths.start` names no adapter file.
        AdapterFileError: it is of another model or of other rules.
    """
    config = ConfigDict(one.config)
    config.task, config.metric = one.config.start_from, ""
    place = one.config.paths.start
    if not place:
        raise FileNotFoundError(
            f"{config.name}, {one.config.task}: starts from the adapter of a run of "
            f"{config.task}: give --config.paths.start=RUN/adapter, or start=fresh"
        )
    other: Outline = tasks.family(config).outline(config)
    example, rules = other.example, dict(config.rules)
    peft = pj.adapt(other.model.apply, other.abstract(), *example, rules=rules)
    found = files.load(place, peft)
    own = one.peft.init(jax.random.key(one.config.seed), one.base)
    # `Full` is the head here; another task's has other classes.
    heads = {site.path for site in one.peft.sites if isinstance(site.method, pj.Full)}
    return {path: own[path] if path in heads else found[path] for path in own}
