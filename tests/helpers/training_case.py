"""A small residual network on random data, shared by the tests of training."""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import peftjax as pj
from peftjax.data.pipeline import train_batches
from peftjax.training.losses import cross_entropy
from peftjax.training.optimizer import make_optimizer
from peftjax.training.state import create_state
from peftjax.training.step import make_step

TOKENS, FEATURES, HIDDEN, CLASSES, DEPTH = 6, 32, 64, 5, 2


class Block(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train):
        h = nn.gelu(nn.Dense(HIDDEN, name="fc1")(nn.LayerNorm(name="norm")(x)))
        h = nn.Dropout(self.rate, deterministic=not train)(h)
        return x + nn.Dense(FEATURES, name="fc2")(h)


class Net(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        for i in range(DEPTH):
            x = Block(self.rate, name=f"blocks_{i}")(x, train)
        return nn.Dense(CLASSES, name="head")(x.mean(1))


@cache
def case(rate=0.0):
    """Return peft and variables."""
    net, x = Net(rate), jnp.zeros((8, TOKENS, FEATURES))
    variables = jax.jit(net.init)(jax.random.key(0), x)
    rules = {
        r"blocks_\d+/fc\d/kernel": pj.LoRA(rank=3, alpha=5.0, dropout=rate),
        r"head/.*": pj.Full(),
    }
    return pj.adapt(net.apply, variables, x, rules=rules), variables


@cache
def arrays(examples=80):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(examples, TOKENS, FEATURES)).astype(np.float32)
    return {"x": x, "label": rng.integers(0, CLASSES, examples)}


def loss(apply, batch, key):
    logits = apply(batch["x"], train=True, rngs={"dropout": key})
    return cross_entropy(logits, batch["label"], smoothing=0.1)


def outputs(apply, batch):
    logits = apply(batch["x"])
    return {"logits": logits, "correct": logits.argmax(-1) == batch["label"]}


ADAMW = make_optimizer("adamw", 1e-2, weight_decay=1e-2)


@cache
def stepper(mesh, rate, optimizer, loss, **settings):
    """Return step and placed variables, with leaves above 256 entries split."""
    peft, variables = case(rate)
    step = make_step(peft, optimizer, loss, mesh, **settings)
    return step, step.shard_base(variables, threshold=256)


def start(mesh, *, rate=0.0, optimizer=ADAMW, loss=loss, **settings):
    """Return step, a fresh state, and placed variables."""
    step, variables = stepper(mesh, rate, optimizer, loss, **settings)
    peft, _ = case(rate)
    return step, create_state(peft, optimizer, jax.random.key(3), mesh), variables


def losses(mesh, steps=4, batch_size=16, **settings):
    """Return the losses of the first steps, and the state after them."""
    step, state, variables = start(mesh, **settings)
    data = train_batches(arrays(), batch_size, seed=7)
    values = []
    for batch in (next(data) for _ in range(steps)):
        state, metrics = step(state, variables, batch)
        values.append(float(metrics["loss"]))
    return np.array(values), state
