"""A parameter on which no output depends is refused, however it is mentioned."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

import peftjax as pj
from peftjax.core.jaxpr import live_inputs
from peftjax.models import Clip, ClipConfig, ClipTextConfig, ClipVisionConfig

LORA = pj.LoRA(rank=2, alpha=7.0)
V = {"a": {"kernel": jnp.ones((8, 8))}, "dead": {"kernel": jnp.ones((8, 8))}}
X = jnp.ones((5, 8))


def alive(v, x):
    return x @ v["a"]["kernel"]


def both(v, x):
    return x @ v["dead"]["kernel"], alive(v, x)


def scanned(v, x):
    def body(carry, _):
        x, y = carry
        return (jnp.tanh(x @ v["a"]["kernel"]), y @ v["dead"]["kernel"]), None

    return lax.scan(body, (x, x), None, 3)[0][0]


def carried(v, x):
    def body(carry, _):
        x, k = carry
        return (jnp.tanh(x @ v["a"]["kernel"]), 2 * k), k.sum()

    return lax.scan(body, (x, v["dead"]["kernel"]), None, 3)[0][0]


def while_loop(v, x):
    def body(c):
        return c[0] + 1, jnp.tanh(c[1] @ v["a"]["kernel"]), c[2] @ v["dead"]["kernel"]

    return lax.while_loop(lambda c: c[0] < 3, body, (0, x, x))[1]


def branch_of_number(index, v, x):
    return lax.switch(index, [lambda: both(v, x)[0], lambda: alive(v, x)])


def with_rule(v, x):
    f = jax.custom_vjp(both)
    f.defvjp(lambda v, x: (both(v, x), (v, x)), lambda r, g: jax.vjp(both, *r)[1](g))
    return f(v, x)[1]


def printed(v, x):
    jax.debug.callback(lambda s: None, v["dead"]["kernel"].sum())
    return alive(v, x)


DEAD = {
    "unused": alive,
    "jit": jax.jit(alive),
    "thrown away": lambda v, x: both(v, x)[1],
    "thrown away in jit": lambda v, x: jax.jit(both)(v, x)[1],
    "thrown away in remat": lambda v, x: jax.checkpoint(both)(v, x)[1],
    "thrown away of custom_vjp": with_rule,
    "scan": scanned,
    "carried": carried,
    "while": while_loop,
    "cond": lambda v, x: lax.cond(False, lambda: both(v, x)[0], lambda: alive(v, x)),
    "switch": partial(branch_of_number, 1),
    "switch, clamped": partial(branch_of_number, 7),
    "printed": printed,
}


@pytest.mark.parametrize("method", [LORA, pj.Full()], ids=["LoRA", "Full"])
@pytest.mark.parametrize("name", DEAD)
def test_a_dead_parameter_is_refused(name, method):
    message = r"no output of this call depends.*\n  rule '\.\*kernel': dead/kernel\n"
    with pytest.raises(ValueError, match=message):
        pj.adapt(DEAD[name], V, X, rules={".*kernel": method})


def feeds_the_next_iteration(v, x):
    def body(carry, _):
        x, k = carry
        return (x @ k, k @ v["dead"]["kernel"]), None

    return lax.scan(body, (alive(v, x), jnp.eye(8)), None, 3)[0][0]


def decides_how_long(v, x):
    more = lambda c: (c[0] @ v["dead"]["kernel"]).sum() < 3  # noqa: E731
    return lax.while_loop(more, lambda c: (c[0] + 1, alive(v, c[1])), (x, x))[1]


def through_a_reference(v, x):
    reference = jax.new_ref(x)
    reference[...] = x @ v["dead"]["kernel"]
    return alive(v, reference[...])


ALIVE = {
    "branch": lambda v, x: branch_of_number(jnp.int32(x.sum()), v, x),
    "index": lambda v, x: branch_of_number(jnp.int32(v["dead"]["kernel"].sum()), v, x),
    "scan": feeds_the_next_iteration,
    "while": decides_how_long,
    "reference": through_a_reference,
    "an output of its own": both,
}


@pytest.mark.parametrize("name", ALIVE)
def test_a_parameter_that_reaches_an_output_lives(name):
    closed = jax.make_jaxpr(ALIVE[name])(V, X)
    assert live_inputs(closed) == [True] * 3


def test_a_mutable_collection_is_an_output():
    class Running(nn.Module):
        @nn.compact
        def __call__(self, x):
            mean = self.variable("batch_stats", "mean", jnp.zeros, ())
            y = nn.Dense(4, name="stats", use_bias=False)(x)
            if self.is_mutable_collection("batch_stats"):
                mean.value = y.mean()
            return nn.Dense(3, name="head")(x)

    model = Running()
    v = model.init(jax.random.key(0), X)
    rules = {"stats/kernel": LORA}
    with pytest.raises(ValueError, match="rule 'stats/kernel': stats/kernel"):
        pj.adapt(model.apply, v, X, rules=rules)
    pj.adapt(model.apply, v, X, rules=rules, mutable=["batch_stats"])


def test_the_text_tower_of_clip_is_dead_where_only_images_are_read():
    vision = ClipVisionConfig(32, 2, 2, 32, image_size=8, patch_size=4)
    text = ClipTextConfig(50, 16, 2, 2, 32)
    model = Clip(ClipConfig(vision, text, projection_dim=4))
    images, ids = jnp.ones((2, 8, 8, 3)), jnp.array([[1, 49]])
    v = jax.eval_shape(model.init, jax.random.key(0), images, ids)
    features = partial(model.apply, method="image_features")
    rules = {r"(image|text)/layers_\d/.*kernel": LORA}
    with pytest.raises(ValueError) as error:
        pj.adapt(features, v, images, rules=rules)
    dead = re.findall(r"(image|text)/\S+/kernel", str(error.value))
    assert dead == ["text"] * 12
    peft = pj.adapt(model.apply, v, images, ids, rules=rules)
    assert len(peft.sites) == 24
