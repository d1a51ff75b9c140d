"""A base model that is trained from scratch, once, and then read from the cache.

Training from scratch is full fine-tuning of a fresh model, so it takes the same path as
every other run. Until it is done its checkpoints lie beside its file, under
`.training`: it can be stopped, or killed, at any step and goes on from the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

import peftjax as pj
from experiments.claims import alone
from experiments.meshes import check_batch, mesh_of
from experiments.optimizer import numbers, optimizer
from experiments.preemption import Stop
from experiments.programs import starter
from experiments.records import digest
from experiments.tasks.task import Score, abstract
from peftjax import storage
from peftjax.data.pipeline import eval_batches, steps_per_epoch, train_batches
from peftjax.hub.tensors import load_tree, save_tree
from peftjax.parallel.distributed import led
from peftjax.parallel.sharding import own_rows
from peftjax.training.evaluation import evaluate, make_eval
from peftjax.training.loop import train
from peftjax.training.step import make_step

Arrays = Mapping[str, Any]
SAVE_STEPS = 500  # between checkpoints


def pretrained(
    config: ConfigDict,
    model: nn.Module,
    example: tuple[Any, ...],
    data: Callable[[], tuple[Arrays, Arrays]],
    loss: Callable[..., jax.Array],
    outputs: Callable[..., dict[str, jax.Array]],
    score: Score,
    stop: Stop | None = None,
) -> Any:
    """Return the variables of the base model, trained or read from the cache.

    Args:
        config: `pretrain` holds the settings, `paths.cache` the folder.
        model: the module, its head of the size that pretraining takes.
        example: arguments of one call.
        data: reads training and validation examples; not called where the cache has
            the weights.
        loss: as `make_step` takes it.
        outputs: as `make_eval` takes it, under `"outputs"`.
        score: validation labels and outputs to what is printed.
        stop: asked after each step; True saves a checkpoint and raises `Preempted`.
    """
    key = digest(config.model, config.pretrain, config.data)
    file = storage.path(config.paths.cache) / f"{config.name}-base-{key}.safetensors"
    with ExitStack() as stack:

        def there() -> bool:
            stack.enter_context(alone(file, stop))
            return file.exists()

        if not led(there):
            mesh = mesh_of(config)
            check_batch("pretrain.batch", config.pretrain.batch, mesh)
            training = _Training(
                config.pretrain, mesh, model, example, loss, outputs, score
            )
            place = file.with_suffix(".training")
            variables = training.run(*data(), place, stop)

            def write() -> None:
                save_tree(file, variables)
                storage.remove(place)

            led(write)
            print(f"base model: written to {file}", flush=True)
    return load_tree(file, abstract(model, example))


@dataclass(frozen=True)
class _Training:
    """The full fine-tuning of a fresh model; see `pretrained`."""

    settings: ConfigDict
    mesh: Any
    model: nn.Module
    example: tuple[Any, ...]
    loss: Callable[..., jax.Array]
    outputs: Callable[..., dict[str, jax.Array]]
    score: Score

    def run(
        self, examples: Arrays, validation: Arrays, place: Path, stop: Stop | None
    ) -> Any:
        """Return the trained variables."""
        settings, mesh = self.settings, self.mesh
        fresh = self._fresh()
        peft = pj.adapt(self.model.apply, fresh, *self.example, rules={".*": pj.Full()})
        epoch = steps_per_epoch(len(examples["label"]), settings.batch)
        steps = settings.epochs * epoch
        descent = optimizer(settings, steps, epoch)
        step = make_step(peft, descent, self.loss, mesh)
        base = step.shard_base(fresh)
        start = starter(peft, descent, mesh)
        state = train(
            step,
            start(settings.seed, base, numbers(settings, steps, epoch)),
            base,
            train_batches(
                examples,
                settings.batch,
                seed=settings.seed,
                part=own_rows(mesh, settings.batch),
            ),
            steps=steps,
            workdir=place,
            save_every=SAVE_STEPS,
            resume=True,
            stop=stop,
        )
        adapters = jax.device_get(peft.combine(state.trainable, state.frozen))
        part = own_rows(mesh, settings.batch)
        batches = eval_batches(validation, settings.batch, part)
        eval_step = make_eval(peft, self.outputs, mesh)
        found = evaluate(eval_step, base, adapters, batches)["outputs"]
        scores = self.score(validation["label"], found)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        print(f"base model: validation {shown}", flush=True)
        return jax.device_get(peft.merge(fresh, adapters))

    def _fresh(self) -> Any:
        def init(seed: Any, *arguments: Any) -> Any:
            return self.model.init(jax.random.key(seed), *arguments)

        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self.example)
        return jax.jit(init)(np.uint32(self.settings.seed), *zeros)
