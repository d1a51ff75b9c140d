"""Llama: equal to the original, with and without its cache."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.models import Llama, LlamaConfig, Rope, generate, lm_loss, load
from peftjax.models.llama.places import Sight, in_several_texts
from peftjax.models.rope import rotation
from tests.helpers.model_cases import (
    MODELS,
    PEFT,
    check_hidden_states,
    close,
    reference,
    run,
    text_inputs,
)

pytestmark = pytest.mark.slow

NAMES = ["llama3", "llama_biased", "llama_regression"]
KIN = ["mistral", "qwen2", "qwen3", "gemma2", "gemma3"]


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_original(name, scan):
    model, variables, io = reference(MODELS / name, scan_layers=scan)
    result, hidden = run(model, variables, **text_inputs(io))
    token = io["attention_mask"] == 1
    check_hidden_states(hidden, io, token)
    if model.head == "lm":
        close(result, io["logits"], token)
    else:
        close(result, io["logits"][:, 0])


@pytest.mark.parametrize("name", KIN)
def test_kin_equals_the_original_in_one_call_in_parts_and_packed(name):
    # All see a window of 4 of 12 tokens, the last four not in every layer.
    model, variables, io = reference(MODELS / name, scan_layers=name != "gemma2")
    result, hidden = run(model, variables, **text_inputs(io))
    mask = io["attention_mask"] == 1
    close(result, io["logits"], mask)
    check_hidden_states(hidden, io, mask)
    ids, step = jnp.asarray(io["input_ids"]), jax.jit(model.apply)
    cache, parts = model.empty_cache(len(ids), 14), []
    for start, stop in ((0, 6), (6, 12)):
        own = slice(start, stop)
        part, cache = step(variables, ids[:, own], mask[:, own], cache=cache)
        parts.append(part)
    close(jnp.concatenate(parts, axis=1), io["logits"], mask)
    row = jnp.concatenate([ids[2:, 6:], ids[:1]], axis=1)
    segments = jnp.array([[1] * 6 + [2] * 12])
    packed = step(variables, row, segment_ids=segments)
    close(packed[:, 6:], io["logits"][:1])


@pytest.mark.parametrize("scan", [False, True])
def test_equals_the_golden_llama(scan):
    model, variables = load(PEFT / "tiny_llama" / "base", scan_layers=scan)
    io = dict(np.load(PEFT / "tiny_llama" / "base_io.npz"))
    logits, hidden = run(model, variables, **text_inputs(io))
    token = io["attention_mask"] == 1
    close(logits, io["logits"], token)
    check_hidden_states(hidden, io, token)


@pytest.mark.parametrize(("name", "scan"), [("llama3", False), ("llama_biased", True)])
def test_the_cache_changes_nothing(name, scan):
    model, variables, io = reference(MODELS / name, scan_layers=scan)
    ids, mask = (jnp.asarray(io[key]) for key in ("input_ids", "attention_mask"))
    whole = jax.jit(model.apply)(variables, ids, mask)
    cache, parts = model.empty_cache(len(ids), 20), []
    step = jax.jit(model.apply)
    for start, stop in ((0, 5), (5, 6), (6, 7), (7, 12)):
        part, cache = step(
            variables, ids[:, start:stop], mask[:, start:stop], cache=cache
        )
        parts.append(part)
    assert cache.used == 12
    close(jnp.concatenate(parts, axis=1), whole, np.asarray(mask) == 1)


@pytest.mark.parametrize(("name", "scan"), [("llama3", True), ("llama_biased", False)])
def test_texts_in_one_row_do_not_see_each_other(name, scan):
    model, variables, io = reference(MODELS / name, scan_layers=scan)
    ids = jnp.asarray(io["input_ids"][:1])
    first, second = ids[:, :5], ids[:, 5:9]
    run = jax.jit(model.apply)
    row = jnp.concatenate([first, second, jnp.zeros((1, 3), jnp.int32)], axis=1)
    segments = jnp.array([[1] * 5 + [2] * 4 + [0] * 3])
    packed = run(variables, row, segment_ids=segments)
    close(packed[:, :5], run(variables, first))
    close(packed[:, 5:9], run(variables, second))
    # Another first text changes nothing of the second, to the bit.
    other = row.at[:, :5].set((row[:, :5] + 1) % 50)
    changed = run(variables, other, segment_ids=segments)
    np.testing.assert_array_equal(changed[:, 5:9], packed[:, 5:9])
    assert (changed[:, :5] != packed[:, :5]).any()


def test_positions_start_anew_with_each_text():
    frequencies = Rope(theta=100.0).frequencies(4)
    sights = [Sight(frequencies)]
    where = in_several_texts(jnp.array([[1, 1, 2, 2, 2, 0, 0]]), sights, first=0)
    expected = rotation(jnp.array([[0, 1, 0, 1, 2, 0, 1]]), frequencies)
    ((_, turned),) = where["sights"]
    for found, wanted in zip(turned, expected):
        np.testing.assert_array_equal(found, wanted)


def test_greedy_is_the_likeliest_next_token():
    model, variables, io = reference(MODELS / "llama3")
    tokens = generate(model, variables, io["input_ids"][:, :4], steps=9)
    logits = jax.jit(model.apply)(variables, tokens)
    assert tokens.dtype == jnp.int32
    np.testing.assert_array_equal(tokens[:, :4], io["input_ids"][:, :4])
    np.testing.assert_array_equal(tokens[:, 4:], logits[:, 3:-1].argmax(-1))


def test_padding_on_the_left_changes_no_continuation():
    model, variables, io = reference(MODELS / "llama3")
    prompt = np.asarray(io["input_ids"][:1, :4])
    padded = np.pad(prompt, ((0, 0), (3, 0)), constant_values=9)
    mask = np.arange(7)[None] >= 3
    plain = generate(model, variables, prompt, steps=8)
    shifted = generate(model, variables, padded, mask=mask, steps=8)
    np.testing.assert_array_equal(plain, shifted[:, 3:])


def test_sampling_follows_key_and_temperature():
    model, variables, io = reference(MODELS / "llama3")
    prompt = np.repeat(io["input_ids"][:1, :3], 400, axis=0)

    def draw(seed, temperature):
        key = jax.random.key(seed)
        return generate(
            model, variables, prompt, steps=1, key=key, temperature=temperature
        )[:, -1]

    np.testing.assert_array_equal(draw(0, 1.5), draw(0, 1.5))
    assert (draw(0, 1.5) != draw(1, 1.5)).any()
    cold = generate(model, variables, prompt, steps=1)[:, -1]
    np.testing.assert_array_equal(draw(0, 1e-4), cold)
    share = jax.nn.softmax(jax.jit(model.apply)(variables, prompt[:1])[0, -1] / 1.5)
    counts = np.bincount(np.concatenate([draw(s, 1.5) for s in range(5)]), minlength=50)
    error = np.sqrt(share * (1 - share) / 2000)
    assert (np.abs(counts / 2000 - share) <= 5 * error + 1e-3).all()


def test_nothing_follows_the_end():
    model, variables, io = reference(MODELS / "llama3")
    prompt = io["input_ids"][:, :4]
    free = np.asarray(generate(model, variables, prompt, steps=10))
    end = int(free[0, 6])
    ended = np.asarray(generate(model, variables, prompt, steps=10, eos=end))
    for with_end, without in zip(ended, free):
        first = np.flatnonzero(without[4:] == end)
        cut = 4 + first[0] if len(first) else len(without)
        np.testing.assert_array_equal(with_end[:cut], without[:cut])
        assert (with_end[cut:] == end).all()


def test_adapted_and_merged_models_say_the_same():
    model, variables, io = reference(MODELS / "llama3", scan_layers=True)
    prompt = jnp.asarray(io["input_ids"][:, :4])
    rules = {r".*/(q|v|down)_proj/kernel": pj.LoRA(rank=2, alpha=3.0)}
    peft = pj.adapt(model.apply, variables, prompt, rules=rules, strict=True)
    adapters = peft.init(jax.random.key(0))
    adapters = jax.tree.map(
        lambda a: a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape), adapters
    )
    traces = []

    def apply(both, *args, **kwargs):
        traces.append(1)
        return peft.apply(*both, *args, **kwargs)

    both = (variables, adapters)
    adapted = generate(model, both, prompt, steps=8, apply=apply)
    merged = generate(model, peft.merge(variables, adapters), prompt, steps=8)
    base = generate(model, variables, prompt, steps=8)
    np.testing.assert_array_equal(adapted, merged)
    assert (np.asarray(adapted) != np.asarray(base)).any()
    once = len(traces)
    generate(
        model, (variables, peft.init(jax.random.key(1))), prompt, steps=8, apply=apply
    )
    assert len(traces) == once, "the second call compiled again"


def test_lm_loss_is_the_mean_over_kept_targets():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 5, 7)).astype(np.float32)
    ids = rng.integers(0, 7, (2, 5))
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    total, count = 0.0, 0
    for row in range(2):
        for t in range(1, 5):
            if mask[row, t]:
                scores = np.exp(logits[row, t - 1].astype(np.float64))
                total -= np.log(scores[ids[row, t]] / scores.sum())
                count += 1
    close(
        lm_loss(jnp.asarray(logits), jnp.asarray(ids), jnp.asarray(mask)), total / count
    )
    assert lm_loss(jnp.asarray(logits), jnp.asarray(ids), jnp.zeros((2, 5))) == 0


def test_rope_kinds():
    plain = Rope(theta=100.0).frequencies(8)
    np.testing.assert_allclose(plain, 100.0 ** (-np.arange(4) / 4), rtol=1e-6)
    linear = Rope(theta=100.0, kind="linear", factor=4.0).frequencies(8)
    np.testing.assert_allclose(linear, plain / 4, rtol=1e-6)
    llama3 = Rope(500000.0, "llama3", 8.0, 1.0, 4.0, 8192).frequencies(128)
    original = Rope(500000.0).frequencies(128)
    wavelength = 2 * np.pi / original
    long, short = wavelength > 8192, wavelength < 8192 / 4
    np.testing.assert_allclose(llama3[long], original[long] / 8, rtol=1e-6)
    np.testing.assert_array_equal(llama3[short], original[short])
    between = ~long & ~short
    assert between.any()
    assert (llama3[between] < original[between]).all()
    assert (llama3[between] > original[between] / 8).all()


def test_bad_arguments():
    config = LlamaConfig(
        vocab_size=9,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
    )
    model, ids = Llama(config), jnp.ones((1, 3), jnp.int32)
    variables = model.init(jax.random.key(0), ids)
    with pytest.raises(ValueError, match="expected integer input_ids"):
        model.apply(variables, ids.astype(float))
    with pytest.raises(ValueError, match="attention_mask of the shape"):
        model.apply(variables, ids, jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="segment_ids of the shape of input_ids"):
        model.apply(variables, ids, segment_ids=jnp.ones((1, 2), jnp.int32))
    with pytest.raises(ValueError, match="without attention_mask and cache"):
        model.apply(variables, ids, jnp.ones((1, 3)), segment_ids=ids)
    with pytest.raises(ValueError, match="see empty_cache"):
        model.apply(variables, ids, cache=model.empty_cache(1, 2))
    with pytest.raises(ValueError, match="pad prompts on the left"):
        generate(model, variables, ids, steps=2, mask=jnp.array([[1, 1, 0]]))
    with pytest.raises(ValueError, match="steps >= 1"):
        generate(model, variables, ids, steps=0)
    with pytest.raises(ValueError, match="head"):
        generate(model.clone(head=None), variables, ids, steps=2)


@pytest.mark.realdata
@pytest.mark.parametrize("scan", [False, True])
def test_a_trained_llama_tells_its_story(shared_data, scan):
    path = shared_data / "weights" / "stories260k"
    model, variables = load(path, scan_layers=scan)
    recorded = np.load(path / "reference.npz")
    logits = jax.jit(model.apply)(variables, recorded["input_ids"][None])[0]
    assert np.abs(logits - recorded["logits"]).max() <= 2e-5
    story = recorded["greedy_ids"]
    for _ in range(2):
        start = time.perf_counter()
        told = np.asarray(generate(model, variables, story[None, :1], steps=120))
        seconds = time.perf_counter() - start
    np.testing.assert_array_equal(told[0], story)
    print(f"\nscan_layers={scan}: {120 / seconds:.0f} tokens/s")
