"""The table of a plan: folded, narrow, with sums; and the FLOPs that it shows."""

import jax
import jax.numpy as jnp
import pytest

import peftjax as pj
from peftjax.core.cost import COLUMNS, flops
from peftjax.core.method import Layer
from peftjax.models.vit import ViT

LORA = pj.LoRA(rank=8, alpha=16.0)


def planned(names, rules, apply_fn=None):
    """A chain of square layers, one for each name."""
    v = {name: jax.ShapeDtypeStruct((8, 8), jnp.float32) for name in names}

    def chain(v, x):
        for name in names:
            x = x @ v[name]
        return x

    x = jax.ShapeDtypeStruct((2, 8), jnp.float32)
    return pj.adapt(apply_fn or chain, v, x, rules=rules)


def paths(peft):
    """The first column of the rows."""
    _, _, *rows = str(peft).splitlines()
    return [row.split()[0] for row in rows[: [r[:1] for r in rows].index("-")]]


@pytest.mark.parametrize(
    "names, expected",
    [
        (["a0", "a1", "a2"], ["a{0..2}"]),
        (["a0", "a2"], ["a{0,2}"]),
        (["a3"], ["a3"]),
        (["a0_b1", "a0_b2", "a1_b1", "a1_b2"], ["a{0,1}_b{1,2}"]),
        (["a0_b1", "a1_b2"], ["a0_b1", "a1_b2"]),  # no grid, so not folded
    ],
)
def test_paths_that_differ_in_a_number_are_one_row(names, expected):
    assert paths(planned(names, {".*": pj.LoRA(2, alpha=7.0)})) == expected


def test_sites_that_differ_otherwise_keep_their_rows_and_rows_add_up():
    rules = {"a0": pj.LoRA(1, alpha=7.0), "a.": pj.LoRA(2, alpha=7.0)}
    peft = planned(["a0", "a1", "a2"], rules)
    assert paths(peft) == ["a0", "a{1,2}"]
    row = next(line for line in str(peft).splitlines() if line.startswith("a{1,2}"))
    assert "LoRA(rank=2, alpha=7.0)" in row and "64" in row
    assert "80 trainable parameters" in str(peft)


def test_a_vit_fits_on_a_screen():
    model, x = ViT(), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    v = jax.eval_shape(model.init, jax.random.key(0), x)
    rules = {r"blocks_\d+/(attn|mlp)/.*kernel": LORA, "head/.*": pj.Full()}
    peft = pj.adapt(model.apply, v, x, rules=rules)
    assert repr(peft) == peft.summary() and len(repr(peft)) < 3000
    assert max(map(len, repr(peft).splitlines())) <= COLUMNS
    assert "blocks_{0..11}/attn/qkv/kernel" in repr(peft)
    html = peft._repr_html_()
    assert html.count("<tr>") == len(paths(peft)) + 1 and "{0..11}" in html


def test_long_paths_and_reasons_stay_within_the_columns():
    name = "encoder/" + "a_very_long_name_of_a_module/" * 3 + "kernel"
    other = lambda v, x: jnp.sort(v[name]).sum() + x @ v[name] + v[name].max()  # noqa: E731
    peft = planned([name], {".*": pj.HRA(rank=2)}, other)
    lines = peft.summary().splitlines()
    assert max(map(len, lines)) <= COLUMNS and "…" in lines[2]
    assert "merged: used by `sort`; used by" in " ".join(peft.summary().split())
    assert "1 merged" in lines[-1]


def test_flops_of_lookups_and_loops():
    names = {"a": jnp.ones((8, 2)), "b": jnp.ones((2, 6))}
    method = pj.LoRA(2, alpha=4.0)
    dense = flops(method, Layer(8, 6), 5, names)
    assert dense == 2 * 5 * 2 * (8 + 6)
    # the lookup of a's rows costs nothing
    assert flops(method, Layer(8, 6, "embedding"), 5, names) == 2 * 5 * 2 * 6
    chain = pj.HRA(rank=2, form="scan")
    u = {"u": jnp.ones((8, 2))}
    # each reflection: one product with the column and one with its transpose
    assert flops(chain, Layer(8, 6), 5, u) == 2 * 2 * (2 * 5 * 8)
