"""Train the base model from scratch, once; later calls read it from the cache.

`python -m experiments.pretrain --config configs/quickstart.py`

Training from scratch is full fine-tuning of a fresh model, so it takes the same path as
every other run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import peftjax as pj
from experiments import cli
from experiments.benchmarks.measure import forward
from experiments.records import digest
from peftjax.data import digits
from peftjax.data.pipeline import steps_per_epoch, train_batches
from peftjax.hub.tensors import load_tree, save_tree
from peftjax.models.vit import ViT
from peftjax.parallel.mesh import make_mesh
from peftjax.training.loop import train
from peftjax.training.losses import cross_entropy
from peftjax.training.optimizer import make_optimizer
from peftjax.training.schedules import warmup_cosine
from peftjax.training.state import create_state
from peftjax.training.step import make_step


def pretrained(config: ConfigDict) -> tuple[ViT, Any]:
    """Return the base model and its variables, trained or read from the cache."""
    model = ViT(**config.model)
    images = jnp.zeros((1, config.model.image_size, config.model.image_size, 1))
    fresh = jax.jit(model.init)(jax.random.key(config.pretrain.seed), images)
    key = digest(config.model, config.pretrain, config.split_seed)
    file = Path(config.cache) / f"{config.name}-base-{key}.safetensors"
    if not file.exists():
        save_tree(file, _train(config.pretrain, model, fresh, config.split_seed))
        print(f"base model: trained, {file}", flush=True)
    else:
        print(f"base model: cached, {file}", flush=True)
    return model, load_tree(file, fresh)


def loss(apply, batch, key):
    """Return the cross-entropy of each image of a batch."""
    return cross_entropy(apply(batch["image"]), batch["label"])


def arrays(examples: digits.Examples) -> dict[str, Any]:
    """Return a split as the pipeline takes it."""
    return {"image": examples.images, "label": examples.labels}


def optimizer(settings: ConfigDict, steps: int) -> Any:
    """Return AdamW with warm-up and cosine decay; biases are not decayed."""
    warmup = int(settings.warmup * steps)
    schedule = warmup_cosine(settings.lr, steps, warmup)
    return make_optimizer("adamw", schedule, weight_decay=settings.weight_decay)


def _train(settings: ConfigDict, model: ViT, fresh: Any, split_seed: int) -> Any:
    data = digits.load(settings.classes, split_seed)
    peft = pj.adapt(model.apply, fresh, data.train.images[:1], rules={".*": pj.Full()})
    steps = settings.epochs * steps_per_epoch(len(data.train.labels), settings.batch)
    mesh, descent = make_mesh(), optimizer(settings, steps)
    step = make_step(peft, descent, loss, mesh)
    with tempfile.TemporaryDirectory() as workdir:
        state = train(
            step,
            create_state(peft, descent, jax.random.key(settings.seed), mesh),
            step.shard_base(fresh),
            train_batches(arrays(data.train), settings.batch, seed=settings.seed),
            steps=steps,
            workdir=workdir,
        )
    adapters = peft.combine(state.trainable, state.frozen)
    trained = jax.device_get(peft.merge(fresh, jax.device_get(adapters)))
    logits = forward(model)(trained, data.validation.images)
    accuracy = (logits.argmax(-1) == data.validation.labels).mean()
    print(f"base model: validation accuracy {accuracy:.3f} on {settings.classes}")
    return trained


if __name__ == "__main__":
    CONFIG = cli.define_config()
    cli.run(lambda: pretrained(CONFIG.value))
