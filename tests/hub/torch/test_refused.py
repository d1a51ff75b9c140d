"""Damaged and foreign files of the torch library: one error that names what."""

import dataclasses
import json
import pickle
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from peftjax.hub import AdapterFileError, load_torch
from peftjax.models import load
from tests.helpers.model_cases import PEFT
from tests.helpers.torch_cases import (
    CONFIG,
    LORA,
    READ,
    TENSORS,
    base,
)


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(LORA, tmp_path / "copy")


def edit(folder, **fields):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **fields}))


def edit_tensors(folder, change):
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)


def refused(folder, *named, error=AdapterFileError, model=None):
    with pytest.raises(error) as caught:
        load_torch(folder, *(model or base(LORA)))
    message = str(caught.value)
    assert len(message) < 1500 and str(folder) in message, message
    for word in named:
        assert word in message, message


def test_null_fields_of_later_versions_are_ignored(copy):
    edit(copy, use_quantum=None, another_config=None)
    load_torch(copy, *base(LORA))


# Fields of old and new releases, with which the library computes the same.
NOTHING = {
    "corda_config": {"cache_file": None},
    "enable_lora": None,
    "eva_config": {"rho": 2.0},
    "fan_in_fan_out": True,
    "layer_replication": [],
    "layers_pattern": "",
    "loftq_config": {"loftq_bits": 4},
    "lora_bias": False,
    "lora_ga_config": {},
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "merge_weights": False,
    "runtime_config": {"ephemeral_gpu_offload": False},
    "target_parameters": [],
    "trainable_token_indices": None,
    "use_dora": False,
}


def test_fields_that_do_nothing_pass(copy):
    expected = load_torch(copy, *base(LORA))
    edit(copy, **NOTHING)
    found = load_torch(copy, *base(LORA))
    assert found[0] == expected[0]
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"use_quantum": 3, "b_config": {}}, ["b_config = {}", "use_quantum = 3"]),
        ({"peft_type": "VBLORA"}, ["VBLORA", "GLORA"]),
        ({"peft_type": ["LORA"]}, ["peft_type"]),
        ({"init_lora_weights": "corda"}, ["init_lora_weights", "corda"]),
        ({"lora_bias": True}, ["lora_bias", "false"]),
        ({"use_rslora": 1}, ["use_rslora"]),
        ({"layer_replication": [[0, 2]]}, ["layer_replication"]),
        ({"trainable_token_indices": [3]}, ["trainable_token_indices"]),
        ({"target_modules": ["qwery", "../value"]}, ["qwery", "attention.self.query"]),
        ({"target_modules": "(query"}, ["target_modules", "regular expression"]),
        ({"target_modules": None}, ["target_modules None"]),
        ({"target_modules": ["query"]}, ["value.lora_A.weight"]),
        ({"target_modules": ["query", "key"]}, ["key.lora_A.weight", "none"]),
        ({"r": 3}, ["query.lora_A.weight", "(3, 32)", "[4, 32]"]),
        ({"r": 0}, ["r: expected an integer >= 1"]),
        ({"r": 4000}, ["rank=4000", "attention/query/kernel"]),
        ({"r": 4.0}, ["r:"]),
        ({"lora_alpha": "8"}, ["lora_alpha"]),
        ({"lora_dropout": 1.5}, ["lora_dropout"]),
        ({"rank_pattern": {"query": 2}}, ["query.lora_A.weight", "(2, 32)"]),
        ({"rank_pattern": {"(": 2}}, ["rank_pattern"]),
        ({"bias": "lora_only"}, ["query.base_layer.bias"]),
        ({"bias": "some"}, ["bias", "lora_only"]),
        ({"modules_to_save": None}, ["classifier.weight"]),
        ({"modules_to_save": ["pooler"]}, ["bert.pooler.dense.bias"]),
        ({"use_dora": True}, ["lora_magnitude_vector"]),
        ({"layers_to_transform": ["1"]}, ["layers_to_transform"]),
        ({"layers_to_transform": [7]}, ["target_modules"]),
        ({"enable_lora": [True, False, True]}, ["enable_lora"]),
        ({"layer_replication": [[0, 4], [2, 5]]}, ["layer_replication"]),
        ({"loftq_config": {}, "init_lora_weights": "loftq"}, ["loftq"]),
        ({"task_type": "TOKEN_CLS"}, ["classifier: a head for every token"]),
    ],
)
def test_a_configuration_without_an_equal_here_is_refused(copy, fields, named):
    edit(copy, **fields)
    refused(copy, *named)


SLOW = "((a|[a-z.0-9_]+)+)+!"


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": SLOW},
        {"exclude_modules": SLOW},
        {"rank_pattern": {SLOW: 4}},
        {"alpha_pattern": {"query": 8, SLOW: 4}},
        {"layers_pattern": SLOW, "layers_to_transform": [0]},
        {"layers_pattern": ["layer", SLOW], "layers_to_transform": [0]},
        {"rank_pattern": {r".*.*.*.*query": 4}},
        {"alpha_pattern": {rf"layer.*\.{i}": 4 for i in range(10_000)}},
    ],
)
def test_patterns_that_may_be_slow_are_never_matched(copy, fields):
    edit(copy, **fields)
    refused(copy, CONFIG, next(iter(fields)), "quick to match", "List the names")


def test_feedforward_patterns_are_never_matched(tmp_path):
    folder = shutil.copytree(READ / "bert" / "ia3", tmp_path / "copy")
    edit(folder, feedforward_modules=SLOW)
    refused(folder, "feedforward_modules", "quick to match")


@pytest.mark.parametrize(
    ("adapter", "fields", "named"),
    [
        ("oft", {"coft": True}, ["coft"]),
        ("oft", {"module_dropout": 0.1}, ["module_dropout"]),
        ("oft_blocks", {"num_cayley_neumann_terms": 7}, ["num_cayley_neumann_terms"]),
        ("oft_blocks", {"peft_version": "0.17.1"}, ["0.17.1", "0.18"]),
        ("oft", {"block_share": True}, ["oft_R.weight", "(1, 28)", "[4, 28]"]),
        ("hra_gs", {"apply_GS": 1}, ["apply_GS"]),
        ("ia3", {"feedforward_modules": []}, ["output.dense.ia3_l", "(32, 1)"]),
        ("glora", {"config_C": "vector"}, ["glora_C.X"]),
        ("glora", {"config_A_B": "matrix"}, ["config_A_B"]),
    ],
)
def test_other_methods_are_read_as_strictly(tmp_path, adapter, fields, named):
    folder = shutil.copytree(READ / "bert" / adapter, tmp_path / "copy")
    edit(folder, **fields)
    refused(folder, *named)


@pytest.mark.parametrize("keep", [0, 7, 300, -4])
def test_truncated_tensors(copy, keep):
    file = copy / TENSORS
    file.write_bytes(file.read_bytes()[:keep])
    refused(copy, "truncated")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"peft_type": "LORA"',
        '"\ud800',
        "[" * 100_000,
        '{"r": 4, "r": 4}',
        f'{{"r": {"1" * 5000}}}',
        '{"peft_type": "LORA", "r": NaN}',
        '{"peft_type": "LORA", "lora_alpha": 1e400}',
    ],
)
def test_damaged_configurations(copy, text):
    (copy / CONFIG).write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(copy)


def test_a_pickle_is_refused_with_the_reason(copy):
    (copy / TENSORS).unlink()
    (copy / "adapter_model.bin").write_bytes(pickle.dumps({"a": 1}))
    refused(copy, "adapter_model.bin", "run code", "safetensors")


@pytest.mark.parametrize("file", [CONFIG, TENSORS])
def test_an_absent_file_is_named(copy, file):
    (copy / file).unlink()
    refused(copy, file, error=FileNotFoundError)


QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"


def rename(new):
    return lambda tensors: tensors.update({new: tensors.pop(QUERY)})


def spoil(value):
    return lambda tensors: tensors.update({QUERY: value})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (rename(QUERY.replace("layer.0", "layer.9")), ["layer.0", "found none"]),
        (rename(QUERY.removeprefix("base_model.model.")), ["base_model.model."]),
        (rename("base_model.model.../../x"), ["query.lora_A.weight"]),
        (spoil(np.zeros((4, 31), "f")), ["(4, 32)", "float32[4, 31]"]),
        (spoil(np.zeros((4, 32), "i4")), ["floating", "int32[4, 32]"]),
        (spoil(np.full((4, 32), np.nan, "f")), ["query.lora_A.weight", "NaN"]),
        (
            lambda t: t.update({f"{QUERY}.x": np.zeros(1, "f")}),
            ["1 tensors", "lora_A.weight.x"],
        ),
        (
            lambda t: t.update(
                {"base_model.model.bert.pooler.dense.bias": np.zeros(32, "f")}
            ),
            ["pooler.dense.bias", "differ"],
        ),
    ],
)
def test_tensors_that_do_not_fit(copy, change, named):
    edit_tensors(copy, change)
    refused(copy, *named)


def test_a_head_for_answers_gets_the_true_reason(copy):
    edit(copy, task_type="QUESTION_ANS", modules_to_save=["qa_outputs"])
    start = "base_model.model."

    def rename(tensors):
        for name in ("weight", "bias"):
            value = tensors.pop(f"{start}classifier.{name}")
            tensors[f"{start}qa_outputs.{name}"] = value

    edit_tensors(copy, rename)
    refused(copy, "qa_outputs: a head for answers that lie in a text")


def test_a_decoder_s_head_is_only_for_a_model_with_a_decoder(copy):
    edit(copy, task_type="SEQ_2_SEQ_LM")
    refused(copy, "classifier: a head of a decoder beside an encoder")


def test_an_adapter_for_a_tied_head_gets_the_true_reason(tmp_path):
    source = PEFT / "tiny_llama" / "lora"
    folder = shutil.copytree(source, tmp_path / "copy")
    model, variables = base(source)
    config = dataclasses.replace(model.config, tie_word_embeddings=True)
    tied = model.clone(config=config), variables
    load_torch(folder, *tied)
    values = {"A": np.zeros((4, 32), "f"), "B": np.zeros((96, 4), "f")}
    head = {
        f"base_model.model.lm_head.lora_{part}.weight": value
        for part, value in values.items()
    }
    edit_tensors(folder, lambda tensors: tensors.update(head))
    edit(folder, target_modules=["q_proj", "v_proj", "down_proj", "lm_head"])
    refused(folder, "lm_head", "embed_tokens/embedding", "untie", model=tied)


def test_repeated_weights_of_the_base_model_are_compared(copy):
    model, variables = base(LORA)
    name = "base_model.model.bert.pooler.dense.bias"
    bias = np.asarray(variables["params"]["pooler"]["bias"])
    edit_tensors(copy, lambda tensors: tensors.update({name: bias}))
    load_torch(copy, model, variables)
    refused(copy, "pooler.dense.bias", model=(model, jax.eval_shape(lambda: variables)))


def test_copies_of_what_all_modules_share_are_compared(tmp_path):
    folder = shutil.copytree(READ / "bert" / "randlora", tmp_path / "copy")
    name = "bert.encoder.layer.1.intermediate.dense.randlora_B"
    edit_tensors(folder, lambda t: t[f"base_model.model.{name}"].__imul__(2))
    refused(folder, name, "the numbers of base_model.randlora_B")


def test_another_model_is_refused():
    refused(LORA, "target_modules", model=base(PEFT / "tiny_llama" / "lora"))
    headless = load(PEFT / "tiny_bert" / "base", head="none")
    refused(LORA, "classifier.weight", "head", model=headless)
    refused(LORA, "(4, 24)", "[4, 32]", model=base(READ / "bare" / "lora"))


def flipped(content, rng):
    damaged = bytearray(content)
    reach = min(len(damaged), 2600) if rng.random() < 0.8 else len(damaged)
    for place in rng.integers(0, reach, rng.integers(1, 4)):
        damaged[place] ^= 1 << rng.integers(0, 8)
    return bytes(damaged)


@pytest.mark.parametrize("file", [CONFIG, TENSORS])
def test_flipped_bytes_give_clean_errors(copy, file):
    content, rng, errors = (copy / file).read_bytes(), np.random.default_rng(0), 0
    for _ in range(200):
        (copy / file).write_bytes(flipped(content, rng))
        try:
            load_torch(copy, *base(LORA))
        except AdapterFileError as error:
            assert str(copy) in str(error)
            errors += 1
    assert 100 < errors <= 200
