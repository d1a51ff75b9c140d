"""DeBERTa-v3: equal to the original, its positions, its adapters, its variants."""

import json
import shutil
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import peftjax as pj
from peftjax.models import CheckpointError, Deberta, DebertaConfig, load
from peftjax.models.deberta.disentangled import bucket, position_scores, table_rows
from peftjax.models.layers import stack_layers
from peftjax.presets import rules
from tests.helpers.model_cases import (
    DATA,
    MODELS,
    STEPS,
    check_hidden_states,
    close,
    reference,
    run,
    text_inputs,
)

pytestmark = pytest.mark.slow

TINY = DebertaConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    position_buckets=4,
    max_relative_positions=12,
)
IDS = jnp.array([[1, 6, 7, 8, 9, 10, 2], [1, 9, 10, 11, 2, 0, 0]])
MASK = jnp.array([[1] * 7, [1] * 5 + [0] * 2])
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
    "name", ["deberta", "deberta_bare", "deberta_absolute", "deberta_unshared"]
)
def test_equals_the_original(name, scan):
    model, variables, io = reference(MODELS / name, scan_layers=scan)
    result, hidden = run(model, variables, **text_inputs(io))
    # Padding as well: the originals let it attend to everything alike.
    check_hidden_states(hidden, io, np.ones((3, 13), bool))
    if model.head is None:
        close(result.hidden, io["last_hidden_state"])
        assert result.pooled is None
    else:
        expected = io["logits"]
        close(result, expected[:, 0] if model.head == "regression" else expected)


@pytest.mark.parametrize("name", ["256_512", "32_128", "50_300", "4_16"])
def test_buckets_equal_the_original(name):
    with np.load(DATA / "deberta_buckets.npz") as file:
        expected = file[name]
    buckets, most = map(int, name.split("_"))
    near = np.abs(np.arange(-520, 521)) < most
    found = bucket(np.arange(-520, 521), buckets, most)
    np.testing.assert_array_equal(found[near], expected[near])
    rows = table_rows(521, buckets, buckets, most)
    clipped = np.clip(expected + buckets, 0, 2 * buckets - 1)
    np.testing.assert_array_equal(rows, clipped[::-1])


@pytest.mark.parametrize("tokens", [1, 2, 7])
@pytest.mark.parametrize("terms", ["both", "c2p", "p2c"])
def test_position_scores_are_those_of_every_pair(tokens, terms):
    span = 4
    query, key = RNG.normal(size=(2, 3, tokens, 2, 5)).astype(np.float32)
    pos_key, pos_query = RNG.normal(size=(2, 2 * span, 2, 5)).astype(np.float32)
    expected = np.zeros((3, 2, tokens, tokens))
    for i in range(tokens):
        for j in range(tokens):
            row = min(max(i - j + span, 0), 2 * span - 1)
            if terms != "p2c":
                expected[:, :, i, j] += (query[:, i] * pos_key[row]).sum(-1)
            if terms != "c2p":
                expected[:, :, i, j] += (key[:, j] * pos_query[row]).sum(-1)
    found = position_scores(
        jnp.asarray(query),
        jnp.asarray(key),
        None if terms == "p2c" else jnp.asarray(pos_key),
        None if terms == "c2p" else jnp.asarray(pos_query),
        jnp.asarray(table_rows(tokens, span, 0, 0)),
    )
    close(found, expected)


def test_remat_and_scan_change_neither_value_nor_gradient():
    unrolled = jax.jit(Deberta(TINY, head=3).init)(jax.random.key(0), IDS)["params"]

    def value_and_gradient(scan, remat):
        model = Deberta(TINY, head=3, scan_layers=scan, remat=remat)
        params = stack_layers(unrolled, "layers") if scan else unrolled

        def loss(params):
            return (model.apply({"params": params}, IDS, MASK) ** 2).sum()

        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
        return value, gradient if scan else stack_layers(gradient, "layers")

    plain = value_and_gradient(False, False)
    positions = plain[1]["relative"]["rel_embeddings"]["embedding"]
    assert np.abs(positions).max() > 0, "positions have no effect"
    jax.tree.map(close, value_and_gradient(True, True), plain)


def test_padding_does_not_reach_the_tokens():
    model = Deberta(TINY, head="regression", scan_layers=True)
    variables = jax.jit(model.init)(jax.random.key(0), IDS)
    apply = jax.jit(model.apply)
    junk = IDS.at[1, 5:].set(33)
    values = apply(variables, IDS, MASK)
    assert values.shape == (2,)
    close(values, apply(variables, junk, MASK))
    close(values[1:], apply(variables, IDS[1:, :5]))


def test_dropout_acts_in_training_only():
    model = Deberta(TINY, head=2, scan_layers=True)
    variables = jax.jit(model.init)(jax.random.key(0), IDS)
    apply = jax.jit(lambda key: model.apply(variables, IDS, train=True, rngs=key))
    first, again, other = (apply({"dropout": jax.random.key(i)}) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    still = model.clone(config=replace(TINY, **none))
    still = jax.jit(partial(still.apply, train=True))(variables, IDS)
    close(still, jax.jit(model.apply)(variables, IDS))


def test_bfloat16_rounds_only():
    model, variables, io = reference(MODELS / "deberta", dtype=jnp.bfloat16)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"bfloat16"}
    logits, _ = run(model, variables, **text_inputs(io))
    assert logits.dtype == jnp.float32
    # Errors of both signs: the root of the number of roundings.
    close(logits, io["logits"], eps=2**-8 / np.sqrt(STEPS))


@pytest.mark.parametrize("scan", [False, True])
def test_hra_on_the_base_size_has_the_papers_count(scan):
    model = Deberta(DebertaConfig(), head=2, scan_layers=scan)
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), ids)
    chosen = rules("deberta", pj.HRA(rank=8), head=False)
    peft = pj.adapt(model.apply, variables, ids, rules=chosen, strict=True)
    assert sum(site.trainable for site in peft.sites) == 663_552
    assert all(site.fast for site in peft.sites)


METHODS = {
    "query": pj.LoRA(rank=2, alpha=3.0),
    "key": pj.HRA(rank=2),
    "value": pj.DoRA(rank=2, alpha=3.0),
    "down": pj.Hydra(rank=2),
}


def test_adapters_act_on_content_and_positions_alike():
    """The query's matrix serves both; merged, scanned and unrolled models agree."""
    chosen = {}
    for part, method in METHODS.items():
        chosen |= rules("deberta", method, parts=(part,), head=False)
    results, adapters, base = [], {}, None
    for scan in (False, True):
        model, variables = load(MODELS / "deberta", scan_layers=scan)
        peft = pj.adapt(model.apply, variables, IDS, MASK, rules=chosen, strict=True)
        assert all(site.fast for site in peft.sites)
        if scan:
            adapters = stack_layers(adapters, "layers")
        else:
            adapters = peft.init(jax.random.key(0), variables)
            adapters = jax.tree.map(
                lambda leaf: leaf + 0.1 * RNG.normal(size=leaf.shape).astype("f"),
                adapters,
            )
            base = jax.jit(model.apply)(variables, IDS, MASK)
        results.append(jax.jit(peft.apply)(variables, adapters, IDS, MASK))
    merged = jax.jit(peft.merge)(variables, adapters)
    close(jax.jit(model.apply)(merged, IDS, MASK), results[-1])
    close(results[1], results[0])
    assert np.abs(results[0] - base).max() > 1e-3, "the adapters have no effect"


@pytest.fixture
def copy(tmp_path):
    """Return a copy of a checkpoint, with entries of `config.json` changed."""

    def make(name="deberta", **changes):
        path = shutil.copytree(MODELS / name, tmp_path / "copy")
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, **changes}))
        return path

    return make


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_kernel_size": 3}, "conv_kernel_size: expected 0"),
        ({"pos_att_type": "c2p|p2p"}, "pos_att_type: expected c2p.*p2p"),
        ({"pos_att_type": [1]}, "pos_att_type: expected a list or words"),
        ({"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd: expected layer_norm or none"),
        ({"norm_rel_ebd": "none"}, "norm_rel_ebd: expected layer_norm, whose weights"),
        ({"position_buckets": 1}, "position_buckets: expected 0 or at least 2"),
        ({"position_buckets": "4"}, "position_buckets: expected a number"),
        ({"position_buckets": 8}, r"rel_embeddings.*expected shape \(16, 24\)"),
        ({"share_att_key": False}, "pos_key/bias"),
        ({"relative_attention": False}, "of no use to it.*rel_embeddings"),
        ({"attention_head_size": 12}, "attention_head_size: expected 6"),
        ({"pooler_hidden_size": 12}, "pooler_hidden_size: expected 24"),
        ({"pooler_hidden_act": "mish"}, "pooler_hidden_act: .*mish"),
        ({"embedding_size": 12}, r"word_embeddings.*expected shape \(50, 12\)"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(copy, changes, message):
    path = copy(**changes)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_spellings_of_the_same_configuration(copy):
    path = copy(pos_att_type=["p2c", "c2p"], max_relative_positions=16)
    model, _ = load(path)
    expected, _ = load(MODELS / "deberta")
    assert replace(model.config, max_relative_positions=0) == expected.config
    assert model.config.span == 4
    assert model.config.max_distance == expected.config.max_distance == 16


def test_what_pretraining_leaves_behind_is_not_used(copy):
    path = copy()
    tensors = dict(load_file(path / "model.safetensors"))
    for name in ("classifier.weight", "classifier.bias"):
        tensors.pop(name)
    extra = (
        "deberta.embeddings.position_embeddings.weight",
        "lm_predictions.lm_head.bias",
        "mask_predictions.dense.weight",
        "cls.predictions.bias",
    )
    tensors |= {name: np.zeros((3, 24), np.float32) for name in extra}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    model, bare = load(path)
    assert model.head is None
    assert "pooler" not in bare["params"]
    _, variables = load(path, head=4)
    pooler = variables["params"]["pooler"]["kernel"]
    np.testing.assert_array_equal(pooler, tensors["pooler.dense.weight"].T)
    assert variables["params"]["classifier"]["kernel"].shape == (24, 4)


def test_bad_arguments():
    absolute = replace(TINY, position_biased_input=True, max_position_embeddings=5)
    with pytest.raises(ValueError, match="Deberta: expected at most 5 tokens"):
        Deberta(absolute).init(jax.random.key(0), IDS)
    close_by = replace(TINY, max_relative_positions=3)
    with pytest.raises(ValueError, match="position_buckets: expected less than 4"):
        Deberta(close_by).init(jax.random.key(0), IDS)
