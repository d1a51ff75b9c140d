"""One update: what it differentiates, accumulates, weights, clips and draws."""

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peftjax as pj
from peftjax.core.method import Method
from peftjax.data.pipeline import eval_batches
from peftjax.parallel.mesh import make_mesh
from peftjax.parallel.sharding import shard
from peftjax.training.evaluation import evaluate, make_eval
from peftjax.training.optimizer import make_optimizer
from peftjax.training.state import create_state
from peftjax.training.step import make_step
from tests.helpers.training_case import arrays, case, loss, outputs, start

EPS = float(jnp.finfo(jnp.float32).eps)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(1, 1, jax.devices()[:1])


def batch(examples=16):
    return {name: array[:examples] for name, array in arrays().items()}


def largest_difference(left, right):
    gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), left, right)
    return max(jax.tree.leaves(gaps))


SGD = make_optimizer("sgd", 1.0)


def test_accumulation_equals_the_big_batch(mesh):
    # Masked rows fall unevenly on the micro-batches, so a mean of means would be off.
    masked = batch() | {"mask": (np.arange(16) % 5 > 1).astype(np.float32)}
    found = []
    for accumulate in (1, 4):
        step, state, variables = start(mesh, optimizer=SGD, accumulate=accumulate)
        found.append(step(state, variables, masked))
    (state, metrics), (other, other_metrics) = found
    assert largest_difference(state.trainable, other.trainable) < 64 * EPS
    assert largest_difference(metrics, other_metrics) < 64 * EPS


def test_masked_examples_do_not_count(mesh):
    step, state, variables = start(mesh, optimizer=SGD)
    short, short_metrics = step(state, variables, batch(8))
    _, state, _ = start(mesh, optimizer=SGD)
    padded = batch() | {"mask": np.repeat([1.0, 0.0], 8).astype(np.float32)}
    padded["x"] = np.where(padded["mask"][:, None, None], padded["x"], 1e3)
    masked, masked_metrics = step(state, variables, padded)
    assert largest_difference(short.trainable, masked.trainable) < 64 * EPS
    assert largest_difference(short_metrics, masked_metrics) < 64 * EPS


def test_token_losses_are_weighted_by_a_token_mask(mesh):
    def per_token(apply, batch, key):
        return apply(batch["x"]).sum(-1)[:, None] * batch["scale"]

    scale = np.arange(48.0, dtype=np.float32).reshape(16, 3)
    mask = (scale % 2).astype(np.float32)
    step, state, variables = start(mesh, loss=per_token)
    peft, _ = case()
    adapters = peft.combine(state.trainable, state.frozen)
    score = peft.apply(case()[1], adapters, batch()["x"]).sum(-1)[:, None] * scale
    expected = (score * mask).sum() / mask.sum()
    _, metrics = step(state, variables, batch() | {"scale": scale, "mask": mask})
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=64 * EPS)


@dataclass(frozen=True)
class Scaled(Method):
    """`y = x K + b + 100 w (a + 0.01)`, a trained, w frozen; penalty `|a - 1|²`."""

    frozen: ClassVar[tuple[str, ...]] = ("w",)

    def init(self, key, layer):
        return {"a": jnp.zeros(layer.d_out), "w": jnp.full(layer.d_out, 3.0)}

    def formula(self, p, x, kernel, bias, *, key=None):
        return x @ kernel + bias + 100.0 * p["w"] * (p["a"] + 0.01)

    def penalty(self, p):
        return ((p["a"] - 1.0) ** 2).sum()


def scaled():
    model, x = nn.Dense(4), jnp.ones((8, 3))
    variables = model.init(jax.random.key(0), x)
    peft = pj.adapt(model.apply, variables, x, rules={"kernel": Scaled()})
    return peft, variables


def squares(apply, batch, key):
    return (apply(batch["x"]) ** 2).sum(-1)


def test_clipping_and_the_norm_ignore_frozen_leaves(mesh):
    peft, variables = scaled()
    step = make_step(peft, make_optimizer("sgd", 1.0, clip=0.5), squares, mesh)
    state = create_state(
        peft, make_optimizer("sgd", 1.0, clip=0.5), jax.random.key(0), mesh
    )
    x = np.ones((8, 3), np.float32)

    def objective(trainable):
        adapters = peft.combine(trainable, state.frozen)
        output = peft.apply(variables, adapters, x)
        return (output**2).sum(-1).mean() + peft.penalty(adapters)

    grads = jax.grad(objective)(state.trainable)
    norm = optax.tree.norm(grads)
    assert float(norm) > 0.5
    before, frozen = jax.device_get((state.trainable, state.frozen))
    after, metrics = step(state, variables, {"x": x})
    assert float(metrics["grad_norm"]) == pytest.approx(float(norm), rel=64 * EPS)
    assert float(metrics["penalty"]) == 4.0
    expected = jax.tree.map(lambda p, g: p - 0.5 * g / norm, before, grads)
    assert largest_difference(after.trainable, expected) < 64 * EPS
    jax.tree.map(np.testing.assert_array_equal, after.frozen, frozen)
    assert jax.tree.leaves(frozen)[0].tolist() == [3.0] * 4


def test_the_optimizer_knows_trainable_leaves_only(mesh):
    peft, _ = scaled()
    optimizer = make_optimizer("adamw", 1e-3)
    state = create_state(peft, optimizer, jax.random.key(0), mesh)
    assert len(jax.tree.leaves(state.frozen)) == 1
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert shapes == [(4,), (4,)]  # two moments of a, none of w


def test_the_base_is_left_alone(mesh):
    step, state, variables = start(mesh)
    before = jax.device_get(variables)
    state, _ = step(state, variables, batch())
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(variables))
    assert int(state.step) == 1


def test_the_state_is_donated_but_not_the_callers_adapters(mesh):
    peft, _ = case()
    adapters = peft.init(jax.random.key(0))
    step, _, variables = start(mesh, optimizer=SGD)
    state = create_state(peft, SGD, jax.random.key(0), mesh, adapters=adapters)
    step(state, variables, batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.trainable))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(adapters))


def test_dropout_draws_from_the_key_and_the_step(mesh):
    def first_loss(seed, at):
        step, state, variables = start(mesh, rate=0.5)
        key = jax.random.key(seed)
        state = state._replace(step=state.step + at, key=key)
        return float(step(state, variables, batch())[1]["loss"])

    once = first_loss(0, 0)
    assert once == first_loss(0, 0)
    assert once != first_loss(0, 1)
    assert once != first_loss(1, 0)


def test_evaluation_pads_and_compiles_once(mesh):
    traces = []

    def counted(apply, batch):
        traces.append(1)
        return outputs(apply, batch)

    peft, variables = case()
    adapters = peft.init(jax.random.key(0))
    examples = {name: array[:21] for name, array in arrays().items()}
    eval_step = make_eval(peft, counted, mesh)
    found = evaluate(eval_step, variables, adapters, eval_batches(examples, 8))
    expected = peft.apply(variables, adapters, examples["x"])
    assert found["logits"].shape == expected.shape
    np.testing.assert_allclose(found["logits"], expected, atol=64 * EPS)
    assert found["correct"].mean() == (expected.argmax(-1) == examples["label"]).mean()
    assert len(traces) == 1
    with pytest.raises(ValueError, match="no batch came"):
        evaluate(eval_step, variables, adapters, [])


def test_one_program_evaluates_adapters_wherever_they_lie():
    compiled = []

    def listen(event, _, **names):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(names)

    peft, variables = case()
    mesh = make_mesh(2, 4)
    eval_step = make_eval(peft, outputs, mesh)
    base = shard(variables, mesh)
    state = create_state(peft, SGD, jax.random.key(0), mesh)
    trained = peft.combine(state.trainable, state.frozen)
    host = jax.device_get(trained)
    once = {name: array[:8] for name, array in arrays().items()}
    expected = evaluate(eval_step, base, trained, [once])
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for adapters in (host, jax.device_put(host, jax.devices()[3]), trained):
            found = evaluate(eval_step, base, adapters, [once])
            np.testing.assert_array_equal(found["logits"], expected["logits"])
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


@dataclass(frozen=True)
class Untrained(Scaled):
    frozen: ClassVar[tuple[str, ...]] = ("a", "w")


def test_nothing_to_train_is_an_error_before_the_first_step(mesh):
    model, x = nn.Dense(4), jnp.ones((8, 3))
    variables = model.init(jax.random.key(0), x)
    peft = pj.adapt(model.apply, variables, x, rules={"kernel": Untrained()})
    with pytest.raises(ValueError, match=r"nothing to train.*kernel: Untrained"):
        create_state(peft, SGD, jax.random.key(0), mesh)


def test_bad_arguments(mesh):
    peft, _ = case()
    with pytest.raises(ValueError, match="parallel='xmap': expected 'jit' or 'pmap'"):
        make_step(peft, SGD, loss, mesh, parallel="xmap")
    with pytest.raises(ValueError, match="accumulate=0: expected at least 1"):
        make_step(peft, SGD, loss, mesh, accumulate=0)
    step, state, variables = start(mesh, accumulate=3)
    with pytest.raises(ValueError, match=r"batch\['x'\] has shape \(16, .* that 3 "):
        step(state, variables, batch())
