"""What planning finds in small models: uses, biases, and what no rule recognises."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import peftjax as pj
from peftjax.core.axes import Atom, shape, whole
from peftjax.core.jaxpr import opened
from peftjax.core.plan import Planner, plan
from peftjax.core.site import Leaves, Site
from peftjax.core.uses import Leaf, Weight

LORA = pj.LoRA(rank=2, alpha=7.0)
X = jax.ShapeDtypeStruct((5, 8), jnp.float32)


def walked(apply_fn, k, *leaves, x=X, dtype="float32"):
    """The planner after `apply_fn(x, kernel, *leaves)`; the kernel alone is adapted."""
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in leaves]
    kernel = jax.ShapeDtypeStruct(k, dtype)
    closed = jax.make_jaxpr(lambda k, *rest: apply_fn(rest[-1], k, *rest[:-1]))(
        kernel, *shapes, x
    )
    quantised = not jnp.issubdtype(kernel.dtype, jnp.floating)
    site = Site("k", 0, LORA, "other", k, dtype, quantised=quantised)
    values = [Weight(None, 0, whole(k), site=site)]
    values += [Leaf(None, i, whole(s)) for i, s in enumerate(leaves, 1)]
    planner = Planner()
    values += [None] * (len(opened(closed)[0].invars) - len(values))
    planner.end(planner.walk(closed, values), "returned by the model")
    return planner


def use(*arguments, **options):
    planner = walked(*arguments, **options)
    assert not planner.opaque
    (found,) = planner.uses[0]
    return found


def test_a_product_is_a_dense_use():
    found = use(lambda x, k: x @ k, (8, 6))
    assert (found.kind, found.rows, found.times) == ("dense", 5, 1)
    assert (found.d_in, found.d_out) == whole((8, 6)) and found.stack == ()


def test_a_transposed_product_swaps_in_and_out():
    found = use(lambda x, k: x @ k.T, (6, 8))
    assert (found.d_in, found.d_out) == whole((6, 8))[::-1]


def test_a_batched_product_is_a_stack_used_at_once():
    x = jax.ShapeDtypeStruct((3, 5, 8), jnp.float32)
    found = use(lambda x, k: jnp.einsum("eti,eio->eto", x, k), (3, 8, 6), x=x)
    assert shape(found.stack) == (3,) and (found.rows, found.times) == (5, 3)


def test_loops_multiply_how_often_a_use_runs():
    def stacked(x, k):
        return lax.scan(lambda x, k: (x @ k, None), x, k)[0]

    def shared(x, k):
        twice = lambda x: lax.fori_loop(0, 2, lambda _, x: x @ k, x)  # noqa: E731
        return lax.scan(lambda x, _: (twice(x), None), x, None, length=3)[0]

    def indexed(x, k):
        return lax.fori_loop(0, 3, lambda i, x: x @ k[i], x)

    first, second = use(stacked, (3, 8, 8)), use(shared, (8, 8))
    assert shape(first.stack) == (3,) and first.times == 3
    assert second.stack == () and second.times == 6
    third = use(indexed, (3, 8, 8))
    assert shape(third.stack) == (3,) and third.times == 3


def test_a_convolution_has_a_window_and_positions():
    x = jax.ShapeDtypeStruct((2, 7, 7, 4), jnp.float32)

    def conv(x, k):
        dims = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=dims)

    found = use(conv, (3, 2, 4, 6), x=x)
    assert (found.kind, found.spatial, found.rows) == ("conv", (3, 2), 2 * 4 * 4)
    assert shape((found.d_in, found.d_out)) == (24, 6)


def test_a_lookup_is_an_embedding():
    ids = jax.ShapeDtypeStruct((2, 3), jnp.int32)
    found = use(lambda ids, k: jnp.take(k, ids, axis=0), (11, 8), x=ids)
    assert (found.kind, found.rows) == ("embedding", 6)
    assert shape((found.d_in, found.d_out)) == (11, 8)


@pytest.mark.parametrize(
    "add",
    [
        lambda y, b: y + b,
        lambda y, b: b + y,
        lambda y, b: y.reshape(5, 2, 3) + b.reshape(2, 3),
        lambda y, b: y.astype("bfloat16") + b.astype("bfloat16"),
        lambda y, b: (y.T + b[:, None]).T,
        lambda y, b: jax.jit(lambda y: y + b)(y),
    ],
)
def test_a_bias_is_seen_through_layout_and_casts(add):
    planner = walked(lambda x, k, b: add(x @ k, b), (8, 6), (6,))
    (found,) = planner.uses[0]
    ((index, (axis,)),) = found.biases
    assert index == 1 and shape((axis,)) == (6,)
    assert planner.elsewhere == {} and set(found.others) <= {"returned by the model"}


def test_a_bias_of_stacked_layers_comes_off_the_stack_with_its_weight():
    def layers(x, k, b):
        body = lambda x, layer: (jnp.tanh(x @ layer[0] + layer[1]), None)  # noqa: E731
        return lax.scan(body, x, (k, b))[0]

    found = use(layers, (3, 8, 8), (3, 8))
    assert found.biases == [(1, ((Atom(0, 1, 3),), (Atom(1, 1, 8),)))]


@pytest.mark.parametrize(
    "function, others",
    [
        (lambda x, k, b: 2 * (x @ k) + b, ["used by `mul`"]),
        (lambda x, k, b: jnp.tanh(x @ k), ["used by `tanh`"]),
        (lambda x, k, b: x @ k, ["returned by the model"]),
        (lambda x, k, b: x @ k + b[::-1], ["used by `add`"]),
    ],
)
def test_what_else_is_done_to_a_product(function, others):
    found = use(function, (8, 6), (6,))
    assert found.biases == [] and found.others == others


def test_other_uses_of_a_bias_are_noted():
    planner = walked(lambda x, k, b: x @ k + b + b.sum(), (8, 6), (6,))
    assert planner.elsewhere == {1: ["used by `reduce_sum`"]}


@pytest.mark.parametrize(
    "function, reason",
    [
        (lambda x, k: x @ (k * k), "used by `mul`"),
        (lambda x, k: x @ (x[0, :, None] * k), "scaled along its input"),
        (lambda x, k: x @ k + k.sum(), "used by `reduce_sum`"),
        (lambda x, k: (x @ k, k), "returned by the model"),
        (lambda x, k: x @ k[:, :4] @ k[:, 4:].T, "used by `slice`"),
        (
            lambda x, k: lax.while_loop(lambda k: k.sum() > 0, lambda k: k - 1, k),
            "carr",
        ),
        (lambda x, k: lax.cond(x.sum() > 0, lambda: k, lambda: 2 * k), "branch"),
        (lambda x, k: x @ (k + k), "used by `add`"),
        (lambda x, k: k @ k, "used by `dot_general`"),
    ],
)
def test_an_unknown_use_is_written_down_by_name(function, reason):
    planner = walked(function, (8, 8))
    assert any(reason in why for why in planner.opaque[0]), planner.opaque


def test_integers_scaled_before_the_product_are_a_use():
    scaled = lambda x, k, s: x @ (k.astype("float32") * s)  # noqa: E731
    assert use(scaled, (8, 6), (6,), dtype="int8").kind == "dense"
    flipped = lambda x, k, s: x @ (s * k.astype("float32"))  # noqa: E731
    assert use(flipped, (8, 6), (6,), dtype="int8").kind == "dense"


def planned(apply_fn, method=LORA, k=(8, 8)):
    closed = jax.make_jaxpr(lambda k, x: apply_fn(x, k))(
        jax.ShapeDtypeStruct(k, jnp.float32), X
    )
    leaves = Leaves(("k",), (jax.ShapeDtypeStruct(k, jnp.float32),))
    (site,) = plan(closed, leaves, {"k": method}, 5, True)
    return site


def test_a_site_counts_what_its_uses_add():
    site = planned(lambda x, k: jnp.tanh(x @ k) @ k)
    assert site.fast and (site.kind, site.d_in, site.d_out) == ("dense", 8, 8)
    assert site.trainable == 2 * (8 + 8) and site.flops == 2 * 2 * 2 * (8 + 8)
    assert site.arrays == (("a", (8, 2)), ("b", (2, 8)))


def test_uses_that_do_not_fit_each_other_are_merged():
    def stacked(x, k):
        return x @ k[0] + jnp.einsum("ti,eio->teo", x, k).sum(1)

    def contracted(x, k):
        return (x @ k).sum() + jnp.einsum("ti,ijk->tjk", x[:, :4], k.reshape(4, 2, 8))

    assert "stacked axes" in planned(stacked, k=(2, 8, 8)).reason
    assert "contracted axes" in planned(contracted).reason


def test_two_sites_of_one_form_share_compiled_programs():
    def model(v, x):
        return x @ v["a"] @ v["b"] @ v["c"]

    v = {name: jnp.ones((8, 8)) for name in "ab"} | {"c": jnp.ones((8, 6))}
    a, b, c = pj.adapt(model, v, X, rules={".*": LORA}).sites
    assert a != b and a.form == b.form and hash(a.form) == hash(b.form)
    assert a.form != c.form


class Watched(pj.LoRA):
    """Writes down each time that its formula is traced."""

    traced = []

    def formula(self, p, x, kernel, bias):
        self.traced.append(x.shape)
        return super().formula(p, x, kernel, bias)


class WatchedAlone(Watched):
    """Has no hash: each of its sites is traced."""

    __hash__ = None


def watched(kind, depth, rows=(5,)):
    """The sites of square layers, and how often planning traced the formula."""
    paths = tuple(f"k{i}" for i in range(depth))
    shapes = (jax.ShapeDtypeStruct((8, 8), jnp.float32),) * depth

    def model(*leaves):
        *kernels, x = leaves
        for i, kernel in enumerate(kernels):
            count = rows[i % len(rows)]
            x = x.at[:count].set(x[:count] @ kernel)
        return x

    kind.traced.clear()
    chosen = dict.fromkeys(paths, kind(rank=2, alpha=7.0))
    closed = jax.make_jaxpr(model)(*shapes, X)
    sites = plan(closed, Leaves(paths, shapes), chosen, 5, True)
    return sites, len(kind.traced)


def test_a_formula_is_traced_once_for_all_layers_alike():
    (one,), once = watched(Watched, 1)
    several, traced = watched(Watched, 6)
    assert traced == once
    assert [site.path for site in several] == [f"k{i}" for i in range(6)]
    assert {site.arrays for site in several} == {one.arrays}
    alone, every = watched(WatchedAlone, 6)
    assert [site.flops for site in alone] == [site.flops for site in several]
    assert every == 6 * once


def test_layers_of_one_form_that_are_used_differently_cost_differently():
    sites, _ = watched(Watched, 4, rows=(5, 2))
    assert [site.form for site in sites] == [sites[0].form] * 4
    assert [site.flops for site in sites] == [64 * n // 5 for n in (5, 2, 5, 2)]
