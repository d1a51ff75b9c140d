"""What counts in a loss: masks, ignored labels, labels outside the classes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peftjax as pj
from peftjax.models.lm_loss import lm_loss, lm_losses
from peftjax.parallel.mesh import make_mesh
from peftjax.training.losses import Weighted, cross_entropy
from peftjax.training.optimizer import make_optimizer
from peftjax.training.state import create_state
from peftjax.training.step import make_step

EPS = float(jnp.finfo(jnp.float32).eps)
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(4, 6, 11)).astype(np.float32))
LABELS = RNG.integers(0, 11, (4, 6))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ignored_labels_cost_nothing_and_have_no_gradient(smoothing):
    labels = np.where(np.arange(24).reshape(4, 6) % 3, LABELS, -100)
    logits = jnp.where((labels == -100)[..., None], jnp.inf, LOGITS)

    def total(logits):
        return cross_entropy(logits, labels, smoothing).sum()

    value, gradient = jax.value_and_grad(total)(logits)
    plain = cross_entropy(LOGITS, LABELS, smoothing)
    expected = float(plain[labels != -100].sum())
    assert float(value) == pytest.approx(expected, rel=64 * EPS)
    assert not gradient[labels == -100].any()
    assert bool(jnp.isfinite(gradient).all()) and bool(gradient.any())
    other = cross_entropy(LOGITS, np.where(labels < 0, -1, labels), ignore_label=-1)
    assert not other[labels == -100].any()


@pytest.mark.parametrize("label", [-1, 11, 2**31 - 1, -(2**31), -101, 2**32 + 3])
def test_a_label_outside_the_classes_is_never_another_class(label):
    found = cross_entropy(LOGITS[0, :2], np.array([label, 3]))
    assert np.isnan(found[0]) and np.isfinite(found[1])
    ids = jnp.asarray(np.array([[1, label % 2**31 or 11, 2]], np.int32))
    assert np.isnan(lm_loss(LOGITS[:1, :3], ids)) == (int(ids[0, 1]) > 10)


def test_unsigned_labels_and_labels_that_are_no_integers():
    found = cross_entropy(LOGITS, LABELS.astype(np.uint8))
    np.testing.assert_array_equal(found, cross_entropy(LOGITS, LABELS))
    with pytest.raises(ValueError, match="integer labels"):
        cross_entropy(LOGITS, LABELS.astype(np.float32))


def test_lm_loss_leaves_out_masked_and_ignored_tokens():
    ids = LABELS.astype(np.int32)
    mask = (np.arange(24).reshape(4, 6) % 4 > 1).astype(np.int32)
    plain = optax.softmax_cross_entropy_with_integer_labels(LOGITS[:, :-1], ids[:, 1:])
    expected = (plain * mask[:, 1:]).sum() / mask[:, 1:].sum()
    ignored = np.where(mask, ids, -100)
    for found in (
        lm_loss(LOGITS, ids, mask),
        lm_loss(LOGITS, ignored),
        lm_loss(LOGITS, ignored, mask),
        lm_loss(LOGITS, np.where(mask, ids, 500), mask),
    ):
        assert float(found) == pytest.approx(float(expected), rel=64 * EPS)
    assert float(lm_loss(LOGITS, ids, mask * 0)) == 0.0


def test_masked_tokens_have_no_gradient_whatever_their_logits():
    ids = LABELS.astype(np.int32)
    mask = (np.arange(24).reshape(4, 6) % 4 > 1).astype(np.int32)
    predicted = np.pad(mask[:, 1:], ((0, 0), (0, 1)))  # by the position before
    logits = jnp.where(predicted[..., None] > 0, LOGITS, jnp.nan)
    gradient = jax.grad(lambda logits: lm_loss(logits, ids, mask))(logits)
    expected = jax.grad(lambda logits: lm_loss(logits, ids, mask))(LOGITS)
    np.testing.assert_array_equal(gradient, expected)


def test_lm_losses_stand_at_their_targets():
    ids = LABELS.astype(np.int32)
    mask = (np.arange(24).reshape(4, 6) % 4 > 1).astype(np.int32)
    losses, weights = lm_losses(LOGITS, ids, mask)
    assert losses.shape == weights.shape == ids.shape
    np.testing.assert_array_equal(weights[:, 1:], mask[:, 1:])
    assert not weights[:, 0].any() and not losses[weights == 0].any()
    mean = (losses * weights).sum() / weights.sum()
    assert float(mean) == pytest.approx(float(lm_loss(LOGITS, ids, mask)), rel=8 * EPS)


KERNEL = {"k": jnp.asarray(RNG.normal(size=(8, 11)).astype(np.float32))}
X = RNG.normal(size=(16, 6, 8)).astype(np.float32)
Y = RNG.integers(0, 11, (16, 6))
MASK = np.arange(96).reshape(16, 6) % 5 > 1


def linear(loss, mesh=None, **settings):
    """Return step, state and base of a linear model with LoRA."""
    mesh = mesh or make_mesh(1, 1, jax.devices()[:1])
    rules = {"k": pj.LoRA(2, alpha=7.0)}
    peft = pj.adapt(lambda v, x: x @ v["k"], KERNEL, X[:1], rules=rules)
    draw = np.random.default_rng(1)
    adapters = jax.tree.map(
        lambda a: jnp.asarray(draw.normal(size=a.shape), jnp.float32),
        peft.init(jax.random.key(0)),
    )
    optimizer = make_optimizer("adamw", 0.1, weight_decay=0.1)
    step = make_step(peft, optimizer, loss, mesh, **settings)
    state = create_state(peft, optimizer, jax.random.key(1), mesh, adapters=adapters)
    return step, state, step.shard_base(KERNEL)


def per_token(apply, batch, key):
    return cross_entropy(apply(batch["x"]), batch["y"])


def after(batch, loss=per_token, **settings):
    step, state, base = linear(loss, **settings)
    state, metrics = step(state, base, batch)
    return jax.device_get((state.trainable, state.opt_state, metrics))


def close(one, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=256 * EPS), one, other
    )


@pytest.mark.parametrize("settings", [{}, {"accumulate": 4}, {"parallel": "pmap"}])
@pytest.mark.parametrize("name", ["mask", "token_mask"])
def test_a_batch_that_does_not_count_moves_nothing(name, settings):
    if "parallel" in settings:
        settings = settings | {"mesh": make_mesh(2, 4)}
    step, state, base = linear(per_token, **settings)
    batch = {"x": X, "y": Y, "mask": np.ones(16, np.float32)}
    state, _ = step(state, base, batch)  # so that there are moments to decay
    before = jax.device_get(state)
    zero = np.zeros(16 if name == "mask" else (16, 6), np.float32)
    nothing = batch | {"x": X * np.nan, "y": Y + 500, name: zero}
    state, metrics = step(state, base, nothing)
    for field in ("trainable", "frozen", "opt_state"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(before, field), getattr(state, field)
        )
    assert int(state.step) == 2
    found = {name: float(metrics[name]) for name in ("loss", "weight", "grad_norm")}
    assert found == {"loss": 0.0, "weight": 0.0, "grad_norm": 0.0}


@pytest.mark.parametrize("settings", [{}, {"accumulate": 4}])
def test_masked_tokens_may_have_any_label(settings):
    batch = {"x": X, "y": Y, "token_mask": MASK}
    expected = after(batch, **settings)
    for wrong in (-100, 500, -1):
        found = after(batch | {"y": np.where(MASK, Y, wrong)}, **settings)
        close(expected, found)


def unstable(apply, batch, key):
    return jnp.sqrt(cross_entropy(apply(batch["x"]), batch["y"]).mean(-1))


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e38])
def test_masked_examples_may_be_anything(garbage):
    mask = (np.arange(16) % 3 > 0).astype(np.float32)
    expected = after({"x": X[mask > 0][:8], "y": Y[mask > 0][:8]}, unstable)
    mask[np.flatnonzero(mask)[8:]] = 0
    x = np.where(mask[:, None, None] > 0, X, garbage).astype(np.float32)
    found = after({"x": x, "y": Y, "mask": mask}, unstable)
    close(expected, found)


def test_padding_and_token_masks_multiply():
    rows = (np.arange(16) < 12).astype(np.float32)
    both = after({"x": X, "y": Y, "mask": rows, "token_mask": MASK})
    one = after({"x": X, "y": Y, "token_mask": MASK * rows[:, None]})
    close(both, one)
    assert both[2]["weight"] == (MASK * rows[:, None]).sum()


def test_weights_that_a_loss_returns():
    def weighted(apply, batch, key):
        labels = batch["y"]
        return Weighted(cross_entropy(apply(batch["x"]), labels), labels != -100)

    labels = np.where(MASK, Y, -100)
    expected = after({"x": X, "y": Y, "token_mask": MASK})
    for accumulate in (1, 4):
        found = after({"x": X, "y": labels}, weighted, accumulate=accumulate)
        close(expected, found)


def test_weights_that_do_not_fit():
    with pytest.raises(ValueError, match=r"batch\['token_mask'\] has shape \(16, 5\)"):
        after({"x": X, "y": Y, "token_mask": MASK[:, :5]})
    with pytest.raises(ValueError, match=r"batch\['mask'\] has shape \(16,\)"):
        after({"x": X, "y": Y, "mask": MASK[:, 0]}, lambda *a: per_token(*a).mean())
    with pytest.raises(ValueError, match="a tuple of 3"):
        after({"x": X, "y": Y}, lambda *a: (per_token(*a), {}, {}))
