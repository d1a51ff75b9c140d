"""A base model that is trained from scratch, once, and then read from the cache.

Training from scratch is full fine-tuning of a fresh model, so it takes the same path as
every other run.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import peftjax as pj
from experiments.claims import alone
from experiments.optimizer import optimizer
from experiments.records import digest
from peftjax.data.pipeline import eval_batches, steps_per_epoch, train_batches
from peftjax.hub.tensors import load_tree, save_tree
from peftjax.models.vit import ViT
from peftjax.parallel.mesh import make_mesh
from peftjax.training.evaluation import evaluate, make_eval
from peftjax.training.loop import train
from peftjax.training.state import create_state
from peftjax.training.step import make_step

Arrays = Mapping[str, Any]


def pretrained(
    config: ConfigDict,
    model: ViT,
    example: tuple[Any, ...],
    data: Callable[[], tuple[Arrays, Arrays]],
    loss: Callable[..., jax.Array],
    outputs: Callable[..., dict[str, jax.Array]],
) -> Any:
    """Return the variables of the base model, trained or read from the cache.

    Args:
        config: `pretrain` holds the settings, `paths.cache` the folder.
        model: the module, its head of the size that pretraining takes.
        example: arguments of one call.
        data: reads training and validation examples; not called where the cache has
            the weights.
        loss: as `make_step` takes it.
        outputs: as `make_eval` takes it; logits, under `"outputs"`.
    """
    init = functools.partial(model.init, jax.random.key(config.pretrain.seed))
    abstract = jax.eval_shape(init, *example)
    key = digest(config.model, config.pretrain, config.data)
    file = Path(config.paths.cache) / f"{config.name}-base-{key}.safetensors"
    with alone(file):
        if not file.exists():
            zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), example)
            fresh = jax.jit(init)(*zeros)
            trained = _train(
                config.pretrain, model, example, fresh, data, loss, outputs
            )
            save_tree(file, trained)
            print(f"base model: written to {file}", flush=True)
    return load_tree(file, abstract)


def _train(settings, model, example, fresh, data, loss, outputs) -> Any:
    examples, validation = data()
    peft = pj.adapt(model.apply, fresh, *example, rules={".*": pj.Full()})
    epoch = steps_per_epoch(len(examples["label"]), settings.batch)
    steps = settings.epochs * epoch
    mesh, descent = make_mesh(), optimizer(settings, steps, epoch)
    step = make_step(peft, descent, loss, mesh)
    base = step.shard_base(fresh)
    with tempfile.TemporaryDirectory() as workdir:
        state = train(
            step,
            create_state(peft, descent, jax.random.key(settings.seed), mesh),
            base,
            train_batches(examples, settings.batch, seed=settings.seed),
            steps=steps,
            workdir=workdir,
        )
    adapters = jax.device_get(peft.combine(state.trainable, state.frozen))
    batches = eval_batches(validation, settings.batch)
    logits = evaluate(make_eval(peft, outputs, mesh), base, adapters, batches)
    accuracy = (logits["outputs"].argmax(-1) == validation["label"]).mean()
    print(f"base model: validation accuracy {accuracy:.3f}", flush=True)
    return jax.device_get(peft.merge(fresh, adapters))
