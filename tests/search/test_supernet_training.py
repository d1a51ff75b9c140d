"""A supernet that is drawn learns for structures that nobody chose."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peftjax as pj
from peftjax.parallel.mesh import make_mesh
from peftjax.search import Space, draw, make_score
from peftjax.training.state import create_state
from peftjax.training.step import make_step

pytestmark = pytest.mark.slow


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="out")(jnp.tanh(nn.Dense(16, name="in")(x)))


def loss(apply, batch, key):
    return ((apply(batch["x"]) - batch["wanted"]) ** 2).mean(-1)


def test_the_loss_falls_for_random_subnets_too_and_drawing_compiles_once():
    keys = jax.random.split(jax.random.key(0), 3)
    x, model = jax.random.normal(keys[0], (64, 8)), Net()
    variables = model.init(keys[1], x)
    # What is wanted is the model's own answer to scaled inputs, moved.
    batch = {"x": x, "wanted": model.apply(variables, 1.5 * x) + 0.5}
    rules = {".*/kernel": pj.GLoRASupernet(rank=2)}
    peft, traces = pj.adapt(model.apply, variables, x, rules=rules), []
    drawing, space = draw(peft), Space(peft)

    def counted(*args):
        traces.append(1)
        return drawing(*args)

    mesh, optimizer = make_mesh(1, 1, jax.devices()[:1]), optax.adam(1e-2)
    step = make_step(peft, optimizer, loss, mesh, update_frozen=counted)
    state = create_state(peft, optimizer, keys[2], mesh)
    base = step.shard_base(variables)
    genes = space.random(np.random.default_rng(7), 20)

    def losses(state):
        adapters = jax.device_get(peft.combine(state.trainable, state.frozen))
        score = make_score(
            space,
            lambda apply, batch: {"loss": loss(apply, batch, None)},
            lambda rows: float(rows["loss"].mean()),
            variables,
            adapters,
            [batch],
            devices=jax.devices()[:1],
        )
        return score(genes)

    before = losses(state)
    assert np.ptp(before) < 1e-6  # all are the frozen model
    for _ in range(500):
        state, _ = step(state, base, batch)
    after = losses(state)
    assert len(traces) == 1
    assert (after < 0.8 * before).mean() > 0.8 and after.mean() < 0.6 * before.mean()
