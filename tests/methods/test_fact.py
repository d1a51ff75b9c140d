"""FacT against the authors' code, in tensor-train and in Tucker form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.core.method import Layer
from peftjax.models.vit import ViT
from tests.helpers.goldens import KEY, close, load

CHECKED = (
    pj.FacT(rank=2, scale=2.0, width=8),
    pj.FacT(rank=2, scale=2.0, width=8, form="tk", dropout=0.2),
)
TRAIN, TUCKER = pj.FacT(3, scale=0.7), pj.FacT(3, scale=0.7, form="tk")


def delta(method, p, x, columns):
    """Return the formula where the layer itself is zero."""
    p = {name: jnp.asarray(value) for name, value in p.items()}
    return method(p, jnp.asarray(x), jnp.zeros((x.shape[-1], columns)))


def test_tensor_train_is_the_authors():
    z = load("fact_tt_official")
    shared = {"u": z["u"], "v": z["v"]}
    qkv = np.stack([z[f"sigma.{name}"] for name in "qkv"], axis=1)[None]
    close(delta(TRAIN, {**shared, "sigma": qkv}, z["x"], 36), z["qkv"])
    up = {**shared, "sigma": z["sigma.fc1"].reshape(1, 3, 4, 3)}
    close(delta(TRAIN, up, z["x"], 48), z["fc1"])
    down = {**shared, "sigma": z["sigma.fc2"].reshape(4, 3, 1, 3)}
    close(delta(TRAIN, down, z["hidden"], 12), z["fc2"])


def test_tucker_is_the_authors():
    z = load("fact_tk_official")
    p = {name: z[name] for name in ("u", "v", "core")}
    p["p"] = z["p"][:, :3].reshape(3, 1, 3)
    close(delta(TUCKER, p, z["x"], 36), z["qkv"])


def test_counts_are_the_authors():
    """TT, rank 8, on ViT-B/16: `set_FacT` makes 2 · 768 · 8 + 12 · (4 + 8) · 8²."""
    model = ViT(num_classes=0)
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, KEY, x)
    for method, count in ((pj.FacT(8), 21_504), (pj.FacT(8, form="tk"), 13_952)):
        rules = pj.presets.rules("vit", method, head=False)
        peft = pj.adapt(model.apply, variables, x, rules=rules)
        trained, _ = peft.partition(jax.eval_shape(peft.init, KEY))
        assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == count


def test_starts():
    p = pj.FacT(16).init(KEY, Layer(256, 1024))
    assert not p["v"].any()
    assert 0.95 / 16 < np.abs(p["u"]).max() <= 1 / 16
    assert 0.95 / 4 < np.abs(p["sigma"]).max() <= 1 / 4
    p = pj.FacT(16, form="tk").init(KEY, Layer(1024, 256))
    assert 0.95 < np.abs(p["core"]).max() * 16 / 3**0.5 <= 1
    assert 0.8 < np.abs(p["p"]).max() / (6 / 160) ** 0.5 <= 1


def test_a_width_must_divide():
    with pytest.raises(ValueError, match="a width that divides both"):
        pj.FacT(2, width=5).check(Layer(12, 10))
