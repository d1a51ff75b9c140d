"""Mutable collections: running statistics are trained, kept, resumed and used."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import peftjax as pj
from peftjax.data.pipeline import eval_batches, train_batches
from peftjax.parallel.mesh import make_mesh
from peftjax.training.checkpoint import CheckpointError
from peftjax.training.evaluation import evaluate, make_eval
from peftjax.training.loop import train
from peftjax.training.losses import cross_entropy
from peftjax.training.optimizer import make_optimizer
from peftjax.training.state import create_state
from peftjax.training.step import make_step

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
ARRAYS = {
    "x": RNG.normal(3.0, 2.0, size=(80, 6)).astype(np.float32),
    "label": RNG.integers(0, 5, 80),
}
OPTIMIZER = make_optimizer("adamw", 1e-2)
MOMENTUM = 0.9


class Net(nn.Module):
    """A frozen layer, and a head with BatchNorm that is trained."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.tanh(nn.Dense(16, name="fc")(x))
        norm = nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM)
        return nn.Dense(5, name="head")(norm(x))


def loss(apply, batch, key):
    logits, updates = apply(batch["x"], train=True, mutable=["batch_stats"])
    return cross_entropy(logits, batch["label"]), updates


MODEL = Net()
VARIABLES = MODEL.init(jax.random.key(0), jnp.zeros((1, 6)))
RULES = {
    "fc/kernel": pj.LoRA(2, alpha=3.0),
    "BatchNorm_0/.*": pj.Full(),
    "head/.*": pj.Full(),
}
PEFT = pj.adapt(MODEL.apply, VARIABLES, jnp.zeros((1, 6)), rules=RULES)


def start(mesh=None, mutable=("batch_stats",), loss=loss, **settings):
    mesh = mesh or make_mesh(1, 1, jax.devices()[:1])
    step = make_step(PEFT, OPTIMIZER, loss, mesh, **settings)
    state = create_state(
        PEFT, OPTIMIZER, jax.random.key(1), mesh, variables=VARIABLES, mutable=mutable
    )
    return step, state, step.shard_base(VARIABLES)


def batch(size=16):
    return {name: array[:size] for name, array in ARRAYS.items()}


def statistics(x):
    """Return the running mean after one batch."""
    params = VARIABLES["params"]["fc"]
    hidden = np.tanh(x @ params["kernel"] + params["bias"])
    return (1 - MOMENTUM) * np.asarray(hidden).mean(0)


@pytest.mark.parametrize(
    ("shape", "settings"),
    [((1, 1), {}), ((2, 4), {}), ((2, 4), {"parallel": "pmap"})],
)
def test_a_step_moves_the_running_statistics(shape, settings):
    mesh = make_mesh(*shape, jax.devices()[: shape[0] * shape[1]])
    step, state, base = start(mesh, **settings)
    fresh = jax.device_get(state.trainable)
    state, _ = step(state, base, batch())
    found = state.mutable["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(found, statistics(ARRAYS["x"][:16]), atol=1e-6)
    for path, p in fresh.items():
        if path != "fc/kernel":
            assert np.abs(p["value"] - state.trainable[path]["value"]).max() > 1e-3
    before = jax.device_get(base["batch_stats"]) if "parallel" not in settings else None
    assert before is None or not before["BatchNorm_0"]["mean"].any()


def test_micro_batches_move_them_one_after_the_other():
    step, state, base = start(accumulate=2)
    state, _ = step(state, base, batch())
    first, second = (statistics(ARRAYS["x"][i:16:2]) for i in (0, 1))
    found = state.mutable["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(found, MOMENTUM * first + second, atol=1e-6)


def test_a_batch_that_does_not_count_leaves_them():
    step, state, base = start()
    before = jax.device_get(state.mutable)
    state, _ = step(state, base, batch() | {"mask": np.zeros(16)})
    jax.tree.map(np.testing.assert_array_equal, before, state.mutable)


def run(workdir, steps, **settings):
    step, state, base = start(make_mesh(2, 4))
    data = train_batches(ARRAYS, 16, seed=3)
    return train(
        step, state, base, data, steps=steps, workdir=workdir, save_every=5, **settings
    )


def bits(state):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state._replace(key=()))]


def test_they_are_saved_and_resumed_bit_for_bit(tmp_path):
    whole = run(tmp_path / "whole", 12)
    run(tmp_path / "parts", 5)
    assert bits(run(tmp_path / "parts", 12, resume=True)) == bits(whole)
    moved = whole.mutable["batch_stats"]["BatchNorm_0"]["var"]
    assert np.abs(np.asarray(moved) - 1).min() > 0.1
    step, state, base = start(make_mesh(2, 4), mutable=())
    data = train_batches(ARRAYS, 16, seed=3)
    with pytest.raises(CheckpointError, match="unexpected: mutable/batch_stats/Batch"):
        train(
            step, state, base, data, steps=12, workdir=tmp_path / "parts", resume=True
        )


def test_evaluation_and_merge_use_them(tmp_path):
    state = run(tmp_path, 12)
    mesh = make_mesh(2, 4)
    adapters = PEFT.combine(state.trainable, state.frozen)
    variables = state.variables(VARIABLES)
    eval_step = make_eval(PEFT, lambda apply, b: {"logits": apply(b["x"])}, mesh)
    found = evaluate(eval_step, variables, adapters, eval_batches(ARRAYS, 16))["logits"]
    merged = PEFT.merge(variables, adapters)
    expected = MODEL.apply(merged, ARRAYS["x"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    stale = MODEL.apply(PEFT.merge(VARIABLES, adapters), ARRAYS["x"])
    assert np.abs(np.asarray(stale) - np.asarray(expected)).max() > 0.1


def test_what_a_loss_forgets_is_named():
    def forgets(apply, batch, key):
        return loss(apply, batch, key)[0]

    with pytest.raises(ValueError, match=r"of no collection .*carries \['batch_stats'"):
        step, state, base = start(loss=forgets)
        step(state, base, batch())
    with pytest.raises(ValueError, match=r"of \['batch_stats'\] .*carries none"):
        step, state, base = start(mutable=())
        step(state, base, batch())

    def widens(apply, batch, key):
        losses, updates = loss(apply, batch, key)
        return losses, jax.tree.map(lambda leaf: leaf[None], updates)

    expected = r"another batch_stats/BatchNorm_0/mean: expected float32\[16\], found"
    with pytest.raises(ValueError, match=expected):
        step, state, base = start(loss=widens)
        step(state, base, batch())
    with pytest.raises(ValueError, match=r"mutable=\['stats'\].*'batch_stats'"):
        start(mutable=["stats"])
    with pytest.raises(ValueError, match="mutable='batch_stats': expected a list"):
        start(mutable="batch_stats")


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.fc = nnx.Linear(6, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=MOMENTUM, rngs=rngs)
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(nnx.tanh(self.fc(x))))


def test_nnx_modules():
    apply_fn, variables = pj.from_nnx(NnxNet(nnx.Rngs(0)))
    x = jnp.zeros((2, 6))
    rules = {"fc/kernel": pj.LoRA(2, alpha=3.0), "norm/.*": pj.Full()}
    peft = pj.adapt(apply_fn, variables, x, rules=rules)

    def nnx_loss(apply, batch, key):
        logits, updates = apply(batch["x"], mutable=True)
        return cross_entropy(logits, batch["label"]), updates

    mesh = make_mesh(1, 1, jax.devices()[:1])
    step = make_step(peft, OPTIMIZER, nnx_loss, mesh)
    state = create_state(
        peft, OPTIMIZER, jax.random.key(1), mesh, variables=variables, mutable=["state"]
    )
    base = step.shard_base(variables)
    for _ in range(2):
        state, _ = step(state, base, batch())
    mean = state.mutable["state"]["norm"]["mean"]
    assert np.abs(np.asarray(mean)).max() > 0.01
    assert not np.asarray(variables["state"]["norm"]["mean"]).any()
