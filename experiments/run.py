"""What a run is: a model, its data, compiled programs, and the state they train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

import peftjax as pj
from experiments import checks, lorahub, tasks, upstream
from experiments.meshes import accumulate_of, check_batch, padded
from experiments.optimizer import numbers
from experiments.programs import ProgramCache
from experiments.tasks.task import Data, Outline, reading
from experiments.workdir import RESULT, read_result
from peftjax import storage
from peftjax.data.pipeline import eval_batches, train_batches
from peftjax.hub import files
from peftjax.parallel.sharding import own_rows
from peftjax.training.evaluation import evaluate
from peftjax.training.loop import NonFiniteLoss


class Run:
    """One task, method and seed, ready to train.

    Args:
        config: of the run.
        cache: of the programs of other runs.
        choose: hyperparameters are being chosen: the test split is not read.
        stop: asked while a base is trained from scratch; True raises `Preempted`.

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
        stop: Callable[[], bool] | None = None,
    ):
        family = tasks.family(config)
        self.config = config
        self.modules: dict[str, str] = {}  # that were composed, with their SHA-256
        self.weighed: dict[str, Any] = {}  # how, where LoraHub's search did
        self.outline: Outline = family.outline(config)
        with reading(f"{config.name}, {config.task}"):
            self.data: Data = family.data(config, choose)
        self.steps, self.steps_per_epoch = checks.length(
            config, len(self.data.train["label"])
        )
        self.base = family.base(config, self.outline, stop)
        self.programs = (cache or ProgramCache()).of(config, self.outline, self.steps)
        batch, mesh = config.train.batch, self.programs.mesh
        check_batch("train.batch", batch, mesh, accumulate_of(config))
        self.peft = self.programs.peft
        self.sharded = self.programs.step.shard_base(self.base)

    def state(self) -> Any:
        """Return the state before the first update.

        Raises:
            FileNotFoundError, NonFiniteLoss, AdapterFileError, UnfitModule: what the
                run starts from is absent or does not fit.
        """
        return self.programs.start(
            self.config.seed,
            self.sharded,
            numbers(self.config.optim, self.steps, self.steps_per_epoch),
            self.start(),
        )

    def start(self) -> Any:
        """Return the adapters that the run starts from; None for fresh ones.

        Raises:
            FileNotFoundError, NonFiniteLoss, AdapterFileError, UnfitModule: as `state`.
        """
        if self.config.get("start_from"):
            return _started(self)
        if not self.config.get("upstream"):
            return None
        own = self.config, self.peft, self.base
        modules, self.modules = upstream.modules(*own, self.data.fingerprints)
        if self.config.get("weigh"):
            modules, self.weighed = lorahub.weighed(self, modules)
        return upstream.composed(*own, modules)

    def batches(self, seed: int | None = None) -> Any:
        """Return the batches of training; by default those of the run's seed."""
        return train_batches(
            self.data.train,
            self.config.train.batch,
            seed=self.config.seed if seed is None else seed,
            lengths=self.data.lengths,
            part=own_rows(self.programs.mesh, self.config.train.batch),
            augment=self.outline.augment,
        )

    def outputs(
        self,
        adapters: Any,
        split: Mapping[str, Any],
        collections: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return logits or scores `[N, ...]` of a split.

        Args:
            adapters: the whole tree.
            split: what is evaluated.
            collections: of the model, instead of the base's own.
        """
        mesh = self.programs.mesh
        size = padded(self.config.train.eval_batch, mesh)
        batches = eval_batches(split, size, own_rows(mesh, size))
        base = {**self.sharded, **collections} if collections else self.sharded
        found = evaluate(self.programs.eval_step, base, adapters, batches)
        return found["outputs"]

    def score(
        self,
        adapters: Any,
        split: Mapping[str, Any],
        collections: Mapping[str, Any] | None = None,
    ) -> dict[str, float]:
        """Return all metrics of a split; the arguments are those of `outputs`."""
        outputs = self.outputs(adapters, split, collections)
        return self.outline.score(split["label"], outputs)

    def examined(
        self, adapters: Any, watch: Callable[[int], None] | None = None
    ) -> dict[str, float]:
        """Return what the task examines once, at the end, beside the test split.

        Args:
            adapters: the whole tree.
            watch: told how much is examined.
        """
        examine = self.outline.examine
        return {} if examine is None else examine(self, adapters, watch)


def _started(one: Run) -> Any:
    """Return the adapters of a run of the task `start_from`, and this run's own head.

    Raises:
        FileNotFoundError: `paths.start` names no adapter file.
        NonFiniteLoss: that run failed.
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
    result = storage.path(place).with_name(RESULT)
    if result.is_file() and read_result(result)["status"] == "failed":
        raise NonFiniteLoss(f"starts from {result.parent}, which failed")
    other: Outline = tasks.family(config).outline(config)
    example, rules = other.example, dict(config.rules)
    peft = pj.adapt(other.model.apply, other.abstract(), *example, rules=rules)
    found = files.load(place, peft)
    own = one.peft.init(jax.random.key(one.config.seed), one.base)
    # `Full` is the head here; another task's has other classes.
    heads = {site.path for site in one.peft.sites if isinstance(site.method, pj.Full)}
    return {path: own[path] if path in heads else found[path] for path in own}
