"""Prefixes against the torch library `peft` on a Llama and a BERT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.core.method import Layer
from peftjax.models import Bert, BertConfig, Llama, LlamaConfig, generate
from peftjax.models.layers import stack_layers
from tests.helpers.goldens import close, random_like
from tests.helpers.model_cases import DATA

PLAIN, NETWORK = pj.PrefixTuning(length=3), pj.PrefixTuning(length=3, hidden=4)
CHECKED = (PLAIN, NETWORK)
RULE = "prefix:output"
LLAMA = LlamaConfig(
    vocab_size=20,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
)


def library(name):
    """Return recorded arrays of the torch library, and the prefix that it saved."""
    from safetensors.numpy import load_file

    folder = DATA / "torch_prefix" / name
    with np.load(folder / "io.npz") as io:
        arrays = dict(io)
    return arrays, load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]


def tiny(name, **options):
    return pj.models.load(DATA / "peft_checkpoints" / name / "base", **options)


@pytest.mark.parametrize("name", ["llama", "llama_network", "bert"])
@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_values_and_gradients_are_the_torch_librarys(name, scan):
    io, prefix = library(name)
    kind = name.partition("_")[0]
    model, variables = tiny(f"tiny_{kind}", scan_layers=scan)
    if kind == "bert":
        model = model.clone(head=None)
    given = {key: io[key] for key in ("input_ids", "attention_mask")}
    peft = pj.adapt(model.apply, variables, **given, rules={RULE: PLAIN})
    adapters = {RULE: {"prefix": jnp.asarray(prefix)}}
    assert {k: v.shape for k, v in adapters[RULE].items()} == dict(peft.sites[0].arrays)

    @jax.jit
    def run(adapters):
        def output(adapters):
            y = peft.apply(variables, adapters, **given)
            return y.hidden if kind == "bert" else y

        y, pull = jax.vjp(output, adapters)
        return y, pull(io["cotangent"])[0]

    found, gradients = run(adapters)
    real = io["attention_mask"].astype(bool)
    close(found[real], io["output"][real])
    if "network" not in name:
        close(gradients[RULE]["prefix"], io["gradient"])


def llama(**options):
    model, ids = Llama(LLAMA, **options), jnp.array([[3, 5, 7, 2], [9, 1, 4, 4]])
    variables = random_like(jax.eval_shape(model.init, jax.random.key(0), ids))
    return model, variables, ids


def test_a_prefix_is_a_cache_that_holds_it():
    """The model's own cache, filled by hand, is the reference."""
    model, variables, ids = llama()
    peft = pj.adapt(model.apply, variables, ids, rules={RULE: PLAIN})
    adapters = random_like(peft.init(jax.random.key(0)))
    rows = np.reshape(
        adapters[RULE]["prefix"], (3, 2, 2, 2, 4)
    )  # n, layer, kv, head, d
    key, value = np.moveaxis(rows, (1, 2), (1, 0))
    cache = model.empty_cache(2, 3 + 4)

    def filled(empty, rows):
        rows = np.broadcast_to(rows[:, None], (2, 2, 3, 2, 4))
        return empty.at[:, :, :3].set(rows)

    cache = cache._replace(
        key=filled(cache.key, key),
        value=filled(cache.value, value),
        mask=cache.mask.at[:, :3].set(True),
        used=jnp.array(3),
    )
    expected, _ = jax.jit(model.apply)(variables, ids, cache=cache)
    close(jax.jit(peft.apply)(variables, adapters, ids), expected)


def test_generation_sees_the_prefix_at_every_step():
    model, variables, ids = llama()
    peft = pj.adapt(model.apply, variables, ids, rules={RULE: PLAIN})
    adapters = random_like(peft.init(jax.random.key(0)))

    def apply(both, *args, **kwargs):
        return peft.apply(*both, *args, **kwargs)

    both = (variables, adapters)
    found = generate(model, both, ids, steps=3, apply=apply)
    whole = jax.jit(peft.apply)(variables, adapters, found[:, :-1])
    np.testing.assert_array_equal(found[:, 4:], whole.argmax(-1)[:, 3:])
    plain = generate(model, variables, ids, steps=3)
    assert not np.array_equal(found, plain)


def test_texts_in_one_row_see_the_prefix_each():
    model, variables, ids = llama()
    peft = pj.adapt(model.apply, variables, ids, rules={RULE: PLAIN})
    adapters = random_like(peft.init(jax.random.key(0)))
    row, segments = ids.reshape(1, 8), jnp.array([[1] * 4 + [2] * 4])
    run = jax.jit(peft.apply)
    found = run(variables, adapters, row, segment_ids=segments)
    close(found.reshape(2, 4, -1), run(variables, adapters, ids))


def test_a_network_makes_the_prefix():
    p = NETWORK.init(jax.random.key(0), Layer(0, 10, "prefix"))
    p = jax.tree.map(np.asarray, random_like(p))
    expected = np.tanh(p["prefix"] @ p["down"] + p["down_bias"])
    expected = expected @ p["up"] + p["up_bias"]
    close(NETWORK.edit(p, None, None), expected)
    assert sum(leaf.size for leaf in p.values()) == NETWORK.count(
        Layer(0, 10, "prefix")
    )


def test_scanned_and_recomputed_layers_have_one_prefix():
    model, variables, ids = llama()
    other = Llama(LLAMA, scan_layers=True, remat=True)
    stacked = {"params": stack_layers(variables["params"], "layers")}
    rules = {RULE: PLAIN}
    first = pj.adapt(model.apply, variables, ids, rules=rules)
    second = pj.adapt(other.apply, stacked, ids, rules=rules)
    adapters = random_like(first.init(jax.random.key(0)))

    def gradient(peft, variables):
        loss = lambda a: (peft.apply(variables, a, ids) ** 2).sum()  # noqa: E731
        return jax.jit(jax.grad(loss))(adapters)

    expected, found = gradient(first, variables), gradient(second, stacked)
    scale = np.abs(expected[RULE]["prefix"]).max()
    close(found[RULE]["prefix"] / scale, expected[RULE]["prefix"] / scale)


def test_flops_are_those_of_more_keys():
    model, variables, ids = llama()
    peft = pj.adapt(model.apply, variables, ids, rules={RULE: PLAIN})
    assert peft.sites[0].flops == 2 * 4 * (4 * 3 * 16)  # layers, queries, 2 products


def test_what_is_refused():
    model, variables, ids = llama()
    peft = pj.adapt(model.apply, variables, ids, rules={RULE: PLAIN})
    with pytest.raises(pj.NotMergeable, match="no weight can hold"):
        peft.merge(variables, peft.init(jax.random.key(0)))
    config = BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=6,
    )
    bert, ids = Bert(config, head=3), jnp.ones((1, 4), jnp.int32)
    shapes = jax.eval_shape(bert.init, jax.random.key(0), ids)
    with pytest.raises(ValueError, match="at most 3 tokens"):
        pj.adapt(bert.apply, shapes, ids, rules={RULE: PLAIN})
