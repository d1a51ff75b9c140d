"""T5: equal to the original, with and without its cache, there and back."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import peftjax as pj
from peftjax.models import T5, CheckpointError, T5Config, generate, lm_loss, load, save
from peftjax.models.t5.relative import buckets
from peftjax.presets import rules
from peftjax.testing import Case, invariants
from tests.helpers.model_cases import (
    MODELS,
    close,
    edit_config,
    edit_tensors,
    reference,
    same_tree,
)

pytestmark = pytest.mark.slow

NAMES = ["t5", "flan_t5"]
INPUTS = (
    "input_ids",
    "attention_mask",
    "decoder_input_ids",
    "decoder_attention_mask",
)


def arrays(io):
    return [jnp.asarray(io[name]) for name in INPUTS]


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_original(name, scan):
    model, variables, io = reference(MODELS / name, scan_layers=scan, remat=scan)
    tied = name == "t5"
    assert model.config.tie_word_embeddings == model.config.scale_decoder_outputs
    assert model.config.tie_word_embeddings == tied
    assert ("lm_head" in variables["params"]) != tied
    logits = jax.jit(model.apply)(variables, *arrays(io))
    close(logits, io["logits"], io["decoder_attention_mask"] == 1)


@pytest.mark.parametrize(("name", "scan"), [("t5", True), ("flan_t5", False)])
def test_the_cache_changes_nothing(name, scan):
    model, variables, io = reference(MODELS / name, scan_layers=scan)
    source, source_mask, ids, mask = arrays(io)
    step = jax.jit(model.apply)
    cache = model.empty_cache(len(ids), 20)
    part, cache = step(
        variables, source, source_mask, ids[:, :5], mask[:, :5], cache=cache
    )
    parts = [part]
    for start, stop in ((5, 6), (6, 13)):
        own = slice(start, stop)
        part, cache = step(variables, ids[:, own], mask[:, own], cache=cache)
        parts.append(part)
    assert cache.used == 13
    close(jnp.concatenate(parts, axis=1), io["logits"], np.asarray(mask) == 1)
    twice = cache.repeated(2)
    part, _ = step(variables, jnp.full((6, 1), 4), cache=twice)
    np.testing.assert_array_equal(part[::2], part[1::2])


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_are_those_of_the_original(name):
    model, variables, io = reference(MODELS / name, scan_layers=True)
    # Their padding on the right is moved to the left, where `generate` wants it.
    end = io["attention_mask"].shape[1] - np.argmax(io["attention_mask"][:, ::-1], 1)
    rolled = [
        np.stack([np.roll(row, -stop) for row, stop in zip(io[key], end)])
        for key in INPUTS[:2]
    ]
    steps = io["greedy"].shape[1]
    tokens = generate(model, variables, rolled[0], mask=rolled[1], steps=steps)
    np.testing.assert_array_equal(tokens[:, -steps:], io["greedy"])


def test_the_loss_of_labels_is_that_of_the_original():
    model, variables, io = reference(MODELS / "t5", scan_layers=True)
    source, source_mask, *_ = arrays(io)
    target = np.pad(io["labels"], ((0, 0), (1, 0)))  # behind the token that starts it
    assert (target == -100).any()
    ids = np.where(target == -100, 0, target)
    logits = jax.jit(model.apply)(variables, source, source_mask, ids)
    close(lm_loss(logits, jnp.asarray(target)), io["loss"])


def test_buckets_are_those_of_the_original():
    with np.load(MODELS / "t5" / "buckets.npz") as file:
        for name, expected in file.items():
            count, most, both_ways = name.split("_")
            found = buckets(int(count), int(most), both_ways == "True")
            np.testing.assert_array_equal(found, expected)


def test_what_is_written_is_what_the_original_reads(tmp_path):
    """`make_t5_references.py check` was run on these; here names and values."""
    for name, scaled in zip(NAMES, (True, False)):
        model, variables = load(MODELS / name, scan_layers=True)
        save(tmp_path / name, model, variables)
        config = json.loads((tmp_path / name / "config.json").read_text())
        original = json.loads((MODELS / name / "config.json").read_text())
        original["scale_decoder_outputs"] = scaled
        common = config.keys() & original.keys()
        assert {key: config[key] for key in common} == {k: original[k] for k in common}
        assert config["architectures"] == ["T5ForConditionalGeneration"]
        again, same = load(tmp_path / name, scan_layers=True)
        assert again == model
        same_tree(same, variables)


def test_copies_of_the_table_are_read_once(copy):
    path = copy(MODELS / "t5")
    expected = load(path)[1]
    table = load_file(path / "model.safetensors")["shared.weight"]
    names = [f"{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")]
    unread = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    extra = {**dict.fromkeys(names, table), "lm_head.weight": table}
    extra[unread] = np.zeros((8, 4), np.float32)
    edit_tensors(path, lambda tensors: tensors.update(extra))
    config = json.loads((path / "config.json").read_text())
    del config["scale_decoder_outputs"]  # as transformers 4 writes it
    (path / "config.json").write_text(json.dumps(config))
    same_tree(load(path)[1], expected)
    edit_tensors(path, lambda tensors: tensors.pop("shared.weight"))
    same_tree(load(path)[1], expected)
    edit_tensors(path, lambda tensors: tensors.update({names[1]: table + 1}))
    with pytest.raises(CheckpointError, match=r"embed_tokens.*of which it is a copy"):
        load(path)


def test_a_tied_output_need_not_be_scaled(copy):
    path = copy(MODELS / "t5")
    edit_config(path, scale_decoder_outputs=False)
    model, variables, io = reference(path)
    assert model.config.tie_word_embeddings
    logits = jax.jit(model.apply)(variables, *arrays(io))
    token = io["decoder_attention_mask"] == 1
    close(logits, io["logits"] * np.sqrt(24, dtype=np.float32), token)


def test_the_decoder_without_its_output_layer(copy):
    path = copy(MODELS / "flan_t5")
    edit_tensors(path, lambda tensors: tensors.pop("lm_head.weight"))
    model, variables = load(path)
    assert model.head is None
    ids = jnp.ones((1, 2), jnp.int32)
    features = jax.eval_shape(model.apply, variables, ids, None, ids)
    assert features.shape == (1, 2, 24)
    with pytest.raises(CheckpointError, match="lm_head/kernel"):
        load(path, head="lm")
    with pytest.raises(CheckpointError, match='expected head="lm" or None, found 3'):
        load(path, head=3)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"is_encoder_decoder": False}, "is_encoder_decoder: expected true"),
        ({"feed_forward_proj": "gated-some"}, "feed_forward_proj: expected an activ"),
        ({"feed_forward_proj": "glu-relu"}, "feed_forward_proj: expected an activ"),
        ({"feed_forward_proj": 3}, "feed_forward_proj: expected an activ"),
        ({"feed_forward_proj": "gated-silu"}, "dense_act_fn: expected 'silu'"),
        ({"is_gated_act": True}, "is_gated_act: expected False"),
        ({"relative_attention_num_buckets": 3}, "num_buckets: expected at least 4"),
        ({"relative_attention_max_distance": 4}, "more than half of 8 buckets"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: expected true or false"),
        ({"dropout_rate": 1.0}, "dropout_rate: expected at least 0"),
        ({"num_layers": 3}, "encoder/layers_2"),
        ({"num_decoder_layers": 2}, r"decoder\.block\.2"),
        ({"model_type": "umt5"}, "model_type 'umt5'"),
    ],
)
def test_what_the_model_does_not_compute_is_refused(copy, entry, message):
    path = copy(MODELS / "t5")
    edit_config(path, **entry)
    with pytest.raises(CheckpointError, match=message):
        load(path)


SMALL = T5Config(
    vocab_size=20,
    d_model=8,
    d_kv=4,
    d_ff=16,
    num_layers=1,
    num_decoder_layers=1,
    num_heads=2,
    dropout_rate=0.5,
)


def test_dropout_acts_in_training_and_remat_changes_no_gradient():
    ids = jnp.array([[3, 4, 5, 6]])
    model = T5(SMALL, scan_layers=True)
    variables = jax.jit(model.init)(jax.random.key(0), ids)

    @jax.jit
    def gradient(variables, key):
        def loss(variables, model):
            rngs = {"dropout": key}
            out = model.apply(variables, ids, None, ids, train=True, rngs=rngs)
            return (out**2).mean()

        every = (model, model.clone(remat=True))
        return [jax.value_and_grad(loss)(variables, one) for one in every]

    (first, grads), (again, same) = gradient(variables, jax.random.key(0))
    other, _ = gradient(variables, jax.random.key(1))[0]
    assert first != other
    close(again, first)
    jax.tree.map(close, grads, same)


def test_bad_arguments():
    ids = jnp.ones((1, 3), jnp.int32)
    model = T5(SMALL)
    variables = jax.eval_shape(model.init, jax.random.key(0), ids)

    def run(variables, *args, cache=None):
        return jax.eval_shape(partial(model.apply, cache=cache), variables, *args)

    with pytest.raises(ValueError, match="expected integer input_ids"):
        run(variables, ids.astype(float))
    with pytest.raises(ValueError, match="expected integer decoder_input_ids"):
        run(variables, ids, None, ids[0])
    with pytest.raises(ValueError, match="attention_mask of the shape of input_ids"):
        run(variables, ids, jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="decoder_attention_mask without"):
        run(variables, ids, None, None, ids)
    with pytest.raises(ValueError, match="a target for each of 1 sources, found 2"):
        run(variables, ids, None, jnp.ones((2, 3), jnp.int32))
    with pytest.raises(ValueError, match="see empty_cache"):
        run(variables, ids, None, ids, cache=model.empty_cache(1, 2))
    empty = model.empty_cache(1, 2)
    call = partial(model.apply, cache=empty)
    _, cache = jax.eval_shape(call, variables, ids)
    with pytest.raises(ValueError, match="give the target's next tokens as input_ids"):
        run(variables, ids, None, ids, cache=cache)
    with pytest.raises(ValueError, match="at least 3 tokens"):
        run(variables, ids, cache=cache)


def test_adapted_and_merged_models_write_the_same():
    model, variables, io = reference(MODELS / "flan_t5", scan_layers=True)
    source = jnp.asarray(io["input_ids"][:, :4])
    chosen = rules("t5", pj.LoRA(rank=2, alpha=3.0))
    peft = pj.adapt(model.apply, variables, source, rules=chosen, strict=True)
    assert all(site.fast for site in peft.sites)
    adapters = peft.init(jax.random.key(0))
    adapters = jax.tree.map(
        lambda a: a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape), adapters
    )

    def apply(both, *args, **kwargs):
        return peft.apply(*both, *args, **kwargs)

    adapted = generate(model, (variables, adapters), source, steps=8, apply=apply)
    merged = generate(model, peft.merge(variables, adapters), source, steps=8)
    base = generate(model, variables, source, steps=8)
    np.testing.assert_array_equal(adapted, merged)
    assert (np.asarray(adapted) != np.asarray(base)).any()


@dataclasses.dataclass(frozen=True)
class OnT5(Case):
    """A method on a T5, at the places of its presets."""

    def patterns(self, mergeable):
        return [*rules("t5", self.method)]


@pytest.mark.parametrize(
    "method", [pj.LoRA(rank=2, alpha=3.0, dropout=0.3), pj.HRA(rank=2)], ids=repr
)
def test_methods_keep_their_invariants_on_a_t5(method):
    model, variables, io = reference(MODELS / "t5", scan_layers=True)
    case = OnT5(method, jnp.float32, model.apply, variables, (*arrays(io),))
    every = ("counts", "starts", "merged", "gradients", "deterministic", "saved")
    for name in every:
        getattr(invariants, name)(case)


def test_lora_goes_where_the_torch_library_puts_it():
    model = T5(SMALL)
    ids = jax.ShapeDtypeStruct((1, 3), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), ids)
    chosen = rules("t5", pj.LoRA(rank=2, alpha=3.0))
    peft = pj.adapt(model.apply, variables, ids, rules=chosen, strict=True)
    places = (
        "encoder/layers_0/self",
        "decoder/layers_0/self",
        "decoder/layers_0/cross",
    )
    expected = {f"{place}_attn/{part}/kernel" for place in places for part in "qv"}
    assert {site.path for site in peft.sites} == expected


def test_a_t5_has_no_other_activation_than_its_own():
    gated = dataclasses.replace(SMALL, feed_forward_proj="gated-gelu")
    assert (SMALL.hidden_act, gated.hidden_act, gated.gated) == ("relu", "gelu_new", 1)
