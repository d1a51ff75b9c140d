"""Rows of a table; against the torch library in `tests/hub/torch/test_load.py`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj

CHECKED = (pj.TrainableTokens(tokens=(1, 0, 2)),)
IDS = jnp.array([[1, 4, 2]])


class Tied(nn.Module):
    @nn.compact
    def __call__(self, ids):
        table = nn.Embed(6, 4)
        return table.attend(table(ids))


def test_rows_of_a_table_that_is_the_output_too():
    model = Tied()
    variables = model.init(jax.random.key(0), IDS)
    peft = pj.adapt(
        model.apply,
        variables,
        IDS,
        rules={".*/embedding": pj.TrainableTokens(tokens=(2, 5))},
    )
    ((path, p),) = peft.init(jax.random.key(1)).items()
    table = variables["params"]["Embed_0"]["embedding"]
    np.testing.assert_array_equal(p["rows"], table[jnp.array([2, 5])])
    adapters = {path: {"rows": p["rows"] + 1.0}}
    changed = table.at[jnp.array([2, 5])].add(1.0)
    expected = model.apply({"params": {"Embed_0": {"embedding": changed}}}, IDS)
    found = jax.jit(peft.apply)(variables, adapters, IDS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    merged = peft.merge(variables, adapters)["params"]["Embed_0"]["embedding"]
    np.testing.assert_allclose(merged, changed, rtol=1e-6, atol=1e-6)
    assert sum(peft.trainable.values()) == 2 * 4


@pytest.mark.parametrize("tokens", [(), (1, 1), (-1,), (True,), (1.0,)])
def test_tokens_are_different_whole_numbers(tokens):
    with pytest.raises(ValueError, match="expected different whole numbers"):
        pj.TrainableTokens(tokens=tokens)


def test_a_token_beyond_the_table_is_named():
    model = Tied()
    variables = model.init(jax.random.key(0), IDS)
    rule = {".*/embedding": pj.TrainableTokens(tokens=(6,))}
    with pytest.raises(ValueError, match="has token 6, and the table 6 rows"):
        pj.adapt(model.apply, variables, IDS, rules=rule)
