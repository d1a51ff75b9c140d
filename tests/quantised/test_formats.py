"""Codes equal to bitsandbytes' and qwix', and what the formats refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.quantised.codebooks import NF4
from peftjax.quantised.formats import _chosen, _gathered, encode
from tests.helpers.goldens import FOLDER

KERNEL = jax.random.normal(jax.random.key(0), (128, 24))


@pytest.mark.parametrize("name", ["single", "double"])
def test_nf4_codes_are_those_of_bitsandbytes(name):
    known = np.load(FOLDER.parent / "nf4_bitsandbytes.npz")
    coded = encode(jnp.asarray(known["kernel"]), pj.NF4(64, double=name == "double"))
    codes = np.concatenate([coded.codes & 15, coded.codes >> 4]).T
    pairs = codes[:, ::2] << 4 | codes[:, 1::2]  # two neighbours in a byte, there
    assert (pairs.ravel() == known[f"{name}_codes"]).all()
    np.testing.assert_array_equal(np.ravel(coded.scales.T), known[f"{name}_scales"])
    np.testing.assert_allclose(coded.decode(), known[name], rtol=1e-6)
    if name == "double":
        np.testing.assert_allclose(coded.base, known["base"], rtol=1e-6)
        np.testing.assert_allclose(coded.offset, known["offset"], rtol=1e-6)


def test_errors_beside_those_of_qwix():
    # It divides whole numbers by 127.5 and 7.5, so that the largest is rounded down.
    known = np.load(FOLDER.parent / "qwix.npz")
    kernel = known["kernel"]
    for format, name, ratio in (
        (pj.NF4(64), "nf4", 1),
        (pj.Int8(64), "int8", 0.985),
        (pj.Int4(64), "int4", 1.058),
    ):
        found = np.asarray(encode(jnp.asarray(kernel), format).decode())
        missed = [np.sqrt(np.mean((x - kernel) ** 2)) for x in (found, known[name])]
        assert missed[0] / missed[1] == pytest.approx(ratio, abs=1e-3)
        if name == "nf4":
            np.testing.assert_array_equal(found, known[name])


@pytest.mark.parametrize(
    ("format", "bits", "error"),
    [
        (pj.Int8(group=64), 8 + 32 / 64, 1 / 254),
        (pj.Int4(group=32), 4 + 32 / 32, 1 / 14),
        (pj.NF4(group=64), 4 + 32 / 64, 0.16),
        (pj.NF4(group=64, double=True), 4 + 8 / 64 + 64 / 128 / 24, 0.16),
    ],
)
def test_bits_and_largest_error(format, bits, error):
    coded = encode(KERNEL, format)
    assert coded.nbytes * 8 / KERNEL.size == pytest.approx(bits)
    scales = jnp.abs(KERNEL.reshape(-1, format.group, 24)).max(1, keepdims=True)
    missed = jnp.abs(coded.decode() - KERNEL).reshape(-1, format.group, 24)
    assert (missed <= 1.01 * error * scales).all()


@pytest.mark.parametrize("axis", [-1, -2, -3])
def test_an_axis_and_a_leading_one(axis):
    array = jax.random.normal(jax.random.key(1), (3, 8, 16, 32), jnp.bfloat16)
    whole = encode(array, pj.Int4(group=8, axis=axis, double=True))
    assert whole.shape == array.shape and whole.decode().dtype == jnp.bfloat16
    for layer in range(3):
        one = jax.tree.map(lambda leaf, i=layer: leaf[i], whole)
        alone = encode(array[layer], pj.Int4(group=8, axis=axis, double=True))
        assert one.shape == array.shape[1:]
        assert (one.decode() == alone.decode()).all()


def test_levels_are_the_same_on_every_platform():
    codes = np.arange(15, dtype=np.uint8)
    for levels in (NF4, np.sort(np.random.default_rng(0).random(16))):
        found = [f(np.float32(levels), codes) for f in (_gathered, _chosen)]
        np.testing.assert_array_equal(*found)


def test_zeros_stay_zeros():
    for format in (pj.NF4(64), pj.Int8(64, double=True)):
        assert not encode(jnp.zeros((64, 2)), format).decode().any()


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ({"fc/kernel": 4}, TypeError, "expected a format such as NF4"),
        ({"fx/kernel": pj.NF4()}, ValueError, "matches no parameter"),
        ({"fc/bias": pj.NF4()}, ValueError, r"fc/bias: .*at least two axes"),
        ({"fc/kernel": pj.NF4(group=48)}, ValueError, "divides axis -2"),
        ({"fc/ids": pj.NF4()}, ValueError, "expected floating numbers, found int32"),
        ({"fc/odd": pj.NF4()}, ValueError, "fc/odd: holds NaN"),
    ],
)
def test_what_cannot_be_coded_is_named(rules, error, message):
    odd = KERNEL.at[0, 0].set(jnp.nan)
    ids = jnp.ones((64, 2), jnp.int32)
    leaves = {"kernel": KERNEL, "bias": jnp.ones(64), "ids": ids, "odd": odd}
    with pytest.raises(error, match=message):
        pj.quantise({"fc": leaves}, rules)


@pytest.mark.parametrize("setting", [{"group": 0}, {"group": 1.5}, {"axis": 1}])
def test_settings_are_checked(setting):
    with pytest.raises(ValueError, match="NF4: expected"):
        pj.NF4(**setting)
