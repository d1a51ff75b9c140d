"""Schedules against the authors' vectors; the optimizer's groups, decay, clipping."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from peftjax.training.losses import cross_entropy
from peftjax.training.optimizer import make_optimizer
from peftjax.training.schedules import (
    constant,
    epoch_cosine,
    warmup_cosine,
    warmup_linear,
)

DATA = Path(__file__).parents[1] / "files"
EPS = float(jnp.finfo(jnp.float32).eps)


@pytest.mark.parametrize("name", ["hydra_vtab", "glora"])
def test_epoch_cosine_equals_the_released_schedules(name):
    with np.load(DATA / f"{name}_lr_schedule.npz", allow_pickle=False) as vectors:
        assert len(vectors.files) > 0
        for key in vectors.files:
            expected = vectors[key]
            schedule = jax.jit(epoch_cosine(float(key[3:]), steps_per_epoch=15))
            epochs = np.arange(len(expected))
            for step in (15 * epochs, 15 * epochs + 14):
                np.testing.assert_allclose(schedule(step), expected, rtol=16 * EPS)


def test_epoch_cosine_keeps_hydras_unfinished_period():
    schedule = epoch_cosine(1e-3, 15)
    assert schedule(15 * 99) == pytest.approx(0.91e-3, rel=0.01)


@pytest.mark.parametrize(
    ("make", "middle"), [(warmup_cosine, 0.6), (warmup_linear, 0.6)]
)
def test_warmup_schedules(make, middle):
    schedule = make(1.0, steps=30, warmup=10, start=0.1, floor=0.2)
    found = [float(schedule(step)) for step in (0, 5, 10, 20, 30, 99)]
    assert found == pytest.approx([0.1, 0.55, 1.0, middle, 0.2, 0.2], rel=4 * EPS)
    assert float(make(1.0, steps=30, warmup=0)(0)) == 1.0
    assert float(constant(0.3)(7)) == pytest.approx(0.3)


def test_cosine_and_linear_differ_between_the_ends():
    at = [float(make(1.0, 30, 10)(15)) for make in (warmup_cosine, warmup_linear)]
    assert at == pytest.approx([0.5 * (1 + np.cos(np.pi / 4)), 0.75], rel=4 * EPS)


@pytest.mark.parametrize("rate", [0.0, -1e-3, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "make",
    [
        constant,
        lambda rate: warmup_cosine(rate, 10, 2),
        lambda rate: warmup_linear(rate, 10, 2),
        lambda rate: epoch_cosine(rate, 5),
        lambda rate: make_optimizer("sgd", rate),
        lambda rate: make_optimizer("sgd", 0.1, groups={"head/.*": rate}),
        lambda rate: make_optimizer("sgd", 0.1, clip=rate),
    ],
)
def test_a_rate_that_trains_nothing_or_backwards_is_refused(make, rate):
    with pytest.raises(ValueError, match=f"={rate}: expected a finite number above 0"):
        make(rate)


def test_lengths_and_decays_that_make_no_sense():
    for steps, warmup in ((0, 0), (-5, 0), (10.0, 10.0), (10, -1), (np.inf, 0)):
        with pytest.raises(ValueError, match="expected 0 <= warmup < steps"):
            warmup_cosine(1.0, steps, warmup)
    for settings in ({"steps_per_epoch": 0}, {"steps_per_epoch": 5, "period": 0}):
        with pytest.raises(ValueError, match="=0: expected at least 1"):
            epoch_cosine(1.0, **settings)
    for decay in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=f"weight_decay={decay}"):
            make_optimizer("adamw", 0.1, weight_decay=decay)


@pytest.mark.parametrize("make", [warmup_cosine, warmup_linear])
def test_warmup_must_lie_within_the_run(make):
    with pytest.raises(ValueError, match=r"warmup=30, steps=30"):
        make(1.0, 30, 30)


PARAMS = {
    "fc/kernel": {"a": jnp.full(3, 2.0), "magnitude": jnp.full(3, 2.0)},
    "head/kernel": {"value": jnp.full(3, 2.0)},
}


def updates(optimizer, grads=None, params=PARAMS):
    grads = jax.tree.map(jnp.ones_like, params) if grads is None else grads
    return optimizer.update(grads, optimizer.init(params), params)[0]


def test_groups_have_their_own_rates_and_the_first_match_wins():
    groups = {"head/.*": constant(1.0), ".*kernel.*": 0.5}
    found = updates(make_optimizer("sgd", 0.1, groups=groups))
    assert float(found["head/kernel"]["value"][0]) == -1.0
    assert float(found["fc/kernel"]["a"][0]) == -0.5
    alone = updates(make_optimizer("sgd", 0.1, groups={"head/.*": 1.0}))
    assert float(alone["fc/kernel"]["a"][0]) == pytest.approx(-0.1)


def test_weight_decay_spares_masked_leaves():
    settings = {"weight_decay": 0.5, "no_decay": [".*/magnitude"]}
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    for name in ("adamw", "sgd"):
        found = updates(make_optimizer(name, 0.1, **settings), zero)
        assert float(found["fc/kernel"]["a"][0]) == pytest.approx(-0.1 * 0.5 * 2)
        assert float(found["fc/kernel"]["magnitude"][0]) == 0.0


def test_adamw_equals_optax():
    ours = make_optimizer("adamw", 1e-2, weight_decay=0.1, b2=0.9)
    theirs = optax.adamw(1e-2, weight_decay=0.1, b2=0.9)
    jax.tree.map(np.testing.assert_array_equal, updates(ours), updates(theirs))


def test_sgd_decays_before_momentum():
    optimizer = make_optimizer("sgd", 1.0, weight_decay=0.5, momentum=0.9)
    params, state = {"w": jnp.float32(1.0)}, None
    state = optimizer.init(params)
    for expected in (-0.5, -0.9 * 0.5 - 0.5 * 0.5):
        step, state = optimizer.update({"w": jnp.float32(0.0)}, state, params)
        assert float(step["w"]) == pytest.approx(expected)
        params = optax.apply_updates(params, step)


def test_clipping_sees_all_groups_together():
    optimizer = make_optimizer("sgd", 1.0, groups={"head/.*": 2.0}, clip=0.3)
    found = updates(optimizer)
    assert float(found["fc/kernel"]["a"][0]) == pytest.approx(-0.3 / 3)
    assert float(found["head/kernel"]["value"][0]) == pytest.approx(-2 * 0.3 / 3)


@pytest.mark.parametrize("kind", ["groups", "no_decay"])
def test_a_pattern_that_decides_nothing_is_an_error(kind):
    patterns = {"groups": {"haed/.*": 1.0}, "no_decay": ["haed/.*"]}[kind]
    optimizer = make_optimizer("adamw", 0.1, **{kind: patterns})
    with pytest.raises(ValueError, match=r"'haed/\.\*'(.|\n)*head/kernel/value"):
        optimizer.init(PARAMS)


def test_a_group_behind_another_that_takes_all_is_an_error():
    optimizer = make_optimizer("adamw", 0.1, groups={".*": 1.0, "head/.*": 0.5})
    with pytest.raises(ValueError, match=r"'head/\.\*' decides no trainable leaf"):
        optimizer.init(PARAMS)


def test_unknown_optimizer():
    with pytest.raises(ValueError, match="'adam': expected 'adamw' or 'sgd'"):
        make_optimizer("adam", 0.1)


def test_smoothed_cross_entropy_is_that_of_the_smoothed_target():
    logits = jax.random.normal(jax.random.key(0), (4, 3, 7))
    labels = jax.random.randint(jax.random.key(1), (4, 3), 0, 7)
    target = 0.8 * jax.nn.one_hot(labels, 7) + 0.2 / 7
    expected = optax.softmax_cross_entropy(logits, target)
    found = cross_entropy(logits, labels, smoothing=0.2)
    np.testing.assert_allclose(found, expected, rtol=16 * EPS)
    assert cross_entropy(logits.astype(jnp.bfloat16), labels).dtype == jnp.float32


def test_cross_entropy_refuses_labels_of_another_shape():
    with pytest.raises(ValueError, match=r"found \(4, 7\), \(4, 1\)"):
        cross_entropy(jnp.zeros((4, 7)), jnp.zeros((4, 1), int))
