"""A short run on eight devices, shared by the tests of the loop and of its files."""

import jax
import jax.numpy as jnp
import numpy as np

from peftjax import storage
from peftjax.data.pipeline import train_batches
from peftjax.parallel.mesh import make_mesh
from peftjax.training.loop import train
from peftjax.training.metrics import read_metrics
from tests.helpers.training_case import arrays, loss, start

STEPS, SAVE, BATCH = 12, 4, 16


def run(workdir, steps=STEPS, data=None, loss=loss, **settings):
    """Train with dropout on all devices."""
    step, state, variables = start(make_mesh(2, 4), rate=0.2, loss=loss)
    data = data or train_batches(arrays(), BATCH, seed=5)
    settings = {"save_every": SAVE, "log_every": 3} | settings
    return train(step, state, variables, data, steps=steps, workdir=workdir, **settings)


def values(state):
    return [
        np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state._replace(key=()))
    ]


def losses(workdir):
    return [
        {k: v for k, v in record.items() if k != "examples_per_s"}
        for record in read_metrics(storage.path(workdir) / "metrics.jsonl")
    ]


def score(state):
    return {
        "norm": float(sum(jnp.abs(x).sum() for x in jax.tree.leaves(state.trainable)))
    }
