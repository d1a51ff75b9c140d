"""BERT and RoBERTa: equal to the originals, whole and in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.models import Bert, BertConfig, load, mean_pool
from peftjax.models.attention import attend
from peftjax.models.layers import stack_layers
from tests.helpers.model_cases import (
    MODELS,
    PEFT,
    STEPS,
    check_hidden_states,
    close,
    reference,
    run,
    text_inputs,
)

pytestmark = pytest.mark.slow

TINY = BertConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=12,
)
IDS = jnp.array([[5, 6, 7, 8, 1], [9, 10, 11, 1, 1]])


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", ["bert", "roberta", "roberta_bare", "xlm_roberta"])
def test_equals_the_original(name, scan):
    model, variables, io = reference(MODELS / name, scan_layers=scan)
    result, hidden = run(model, variables, **text_inputs(io))
    token = io["attention_mask"] == 1
    check_hidden_states(hidden, io, token)
    if model.head is None:
        close(result.hidden, io["last_hidden_state"], token)
        close(result.pooled, io["pooler_output"])
    else:
        close(result, io["logits"])


@pytest.mark.parametrize("scan", [False, True])
def test_equals_the_golden_bert(scan):
    model, variables = load(PEFT / "tiny_bert" / "base", scan_layers=scan)
    io = dict(np.load(PEFT / "tiny_bert" / "base_io.npz"))
    logits, hidden = run(model, variables, **text_inputs(io))
    close(logits, io["logits"])
    check_hidden_states(hidden, io, io["attention_mask"] == 1)


def test_remat_and_scan_change_neither_value_nor_gradient():
    unrolled = jax.jit(Bert(TINY, head=3).init)(jax.random.key(0), IDS)["params"]

    def value_and_gradient(scan, remat):
        model = Bert(TINY, head=3, scan_layers=scan, remat=remat)
        params = stack_layers(unrolled, "layers") if scan else unrolled

        def loss(params):
            return (model.apply({"params": params}, IDS) ** 2).sum()

        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
        return value, gradient if scan else stack_layers(gradient, "layers")

    plain = value_and_gradient(False, False)
    for scan, remat in ((False, True), (True, False), (True, True)):
        other = value_and_gradient(scan, remat)
        jax.tree.map(close, other, plain)


def test_dropout_draws_from_its_rng_and_only_in_training():
    model = Bert(TINY, head=2)
    variables = model.init(jax.random.key(0), IDS)
    keys = [{"dropout": jax.random.key(i)} for i in (1, 1, 2)]
    first, again, other = (
        model.apply(variables, IDS, train=True, rngs=key) for key in keys
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    np.testing.assert_array_equal(
        model.apply(variables, IDS, rngs=keys[0]), model.apply(variables, IDS)
    )
    with pytest.raises(Exception, match="dropout"):
        model.apply(variables, IDS, train=True)


def test_without_rates_training_equals_evaluation():
    config = BertConfig(
        **{
            **vars(TINY),
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
    )
    model = Bert(config, head=2)
    variables = model.init(jax.random.key(0), IDS)
    close(model.apply(variables, IDS, train=True), model.apply(variables, IDS))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_is_that_of_jax_with_its_gradient(groups):
    keys = jax.random.split(jax.random.key(0), 5)
    q, ct = (jax.random.normal(key, (2, 5, 4, 8)) for key in keys[:2])
    k, v = (jax.random.normal(key, (2, 6, groups, 8)) for key in keys[2:4])
    bias = 3 * jax.random.normal(keys[4], (1, 4, 5, 6))
    mask = jnp.tril(jnp.ones((5, 6), bool))[None, None]

    def both(function):
        def call(q, k, v, bias):
            return function(q, k, v, mask=mask, bias=bias, scale=0.3)

        y, back = jax.vjp(call, q, k, v, bias)
        return y, *back(ct)

    jax.tree.map(close, both(attend), both(jax.nn.dot_product_attention))


def test_attention_with_dropout_keeps_masks_groups_and_the_mean():
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (2, 5, 4, 8))
    k, v = (jax.random.normal(key, (2, 5, 2, 8)) for key in keys[1:])
    mask = jnp.tril(jnp.ones((5, 5), bool))[None, None]
    plain = attend(q, k, v, mask)
    never = attend(q, k, v, mask, dropout=1e-9, dropout_key=keys[0])
    close(never, plain)
    draws = jax.vmap(lambda key: attend(q, k, v, mask, dropout=0.3, dropout_key=key))(
        jax.random.split(keys[0], 2000)
    )
    # Six standard errors of the mean, from the draws themselves.
    error = 6 * draws.std(0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - plain) <= error + 1e-6).all()
    assert (draws.std(0) > 0.01).all()


def test_padding_does_not_reach_the_tokens():
    model = Bert(TINY, head=2)
    variables = model.init(jax.random.key(0), IDS)
    mask = jnp.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    junk = IDS.at[:, 4].set(33).at[1, 3].set(34)
    close(model.apply(variables, IDS, mask), model.apply(variables, junk, mask))


def test_roberta_counts_positions_from_its_padding_id():
    config = BertConfig(**{**vars(TINY), "roberta": True, "pad_token_id": 1})
    model = Bert(config, with_pooler=False)
    variables = model.init(jax.random.key(0), IDS)
    table = variables["params"]["embeddings"]["position_embeddings"]["embedding"]
    first = model.apply(variables, IDS).hidden
    unused = {**variables["params"]["embeddings"]}
    unused["position_embeddings"] = {"embedding": table.at[0].set(7.0)}
    other = {"params": {**variables["params"], "embeddings": unused}}
    np.testing.assert_array_equal(first, model.apply(other, IDS).hidden)
    assert config.max_tokens == 10


def test_bfloat16_rounds_only():
    model, variables, io = reference(MODELS / "roberta", dtype=jnp.bfloat16)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"bfloat16"}
    logits, _ = run(model, variables, **text_inputs(io))
    assert logits.dtype == jnp.float32
    # Errors of both signs: the root of the number of roundings.
    close(logits, io["logits"], eps=2**-8 / np.sqrt(STEPS))


def test_heads_and_pooling():
    variables = Bert(TINY, head="regression").init(jax.random.key(0), IDS)
    assert Bert(TINY, head="regression").apply(variables, IDS).shape == (2,)
    hidden = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    mask = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    expected = np.stack([hidden[0, :2].mean(0), hidden[1].mean(0)])
    close(mean_pool(jnp.asarray(hidden), jnp.asarray(mask)), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jnp.ones((1, 13), jnp.int32),), "at most 12 tokens"),
        ((jnp.ones((1, 3)),), "expected integer input_ids"),
        ((jnp.ones(3, jnp.int32),), "expected integer input_ids"),
        ((IDS, jnp.ones((2, 4))), "of the shape of input_ids"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Bert(TINY).init(jax.random.key(0), *arguments)
