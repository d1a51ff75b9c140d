"""Adapters written for the torch library are what it reads; others are refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import peftjax as pj
from peftjax.hub import AdapterFileError, save_merged, save_torch
from peftjax.hub.torch import save as writer
from peftjax.models import load
from tests.helpers import torch_cases
from tests.helpers.model_cases import MODELS, PEFT
from tests.helpers.torch_cases import (
    CONFIG,
    LORA,
    TENSORS,
    WRITTEN,
    base,
    check_adapted,
    check_merged,
    close,
    compiled,
    inputs,
    planned,
)

pytestmark = pytest.mark.slow

OURS = torch_cases.adapters(WRITTEN)


@pytest.mark.parametrize("folder", OURS, ids=torch_cases.name)
def test_what_the_torch_library_read_is_what_is_written(folder, tmp_path):
    """`torch.npz` holds what the library computed from the files beside it."""
    with np.load(folder / "io.npz") as ours, np.load(folder / "torch.npz") as theirs:
        close(ours["logits"], theirs["logits"])
        close(ours["logits"], theirs["logits_merged"])
    peft, _, adapters = planned(folder)
    config = json.loads((folder / CONFIG).read_text())
    model, name = base(folder)[0], config["base_model_name_or_path"]
    save_torch(tmp_path / "new", model, peft, adapters, base_model_name=name)
    assert json.loads((tmp_path / "new" / CONFIG).read_text()) == config
    found, expected = (load_file(path / TENSORS) for path in (tmp_path / "new", folder))
    assert found.keys() == expected.keys()
    for key in found:
        np.testing.assert_array_equal(found[key], expected[key])


@pytest.mark.parametrize("name", ["bert/lora", "bert/hra"])
def test_a_trained_adapter_equals_what_the_torch_library_made_of_it(name):
    with np.load(WRITTEN / name / "torch.npz") as io:
        plan = planned(WRITTEN / name)
        check_adapted(plan, WRITTEN / name, io["logits"])
        check_merged(plan, WRITTEN / name, io["logits_merged"])


def test_scanned_adapters_are_written_layer_by_layer(tmp_path):
    peft, _, adapters = planned(LORA, scan_layers=True)
    save_torch(tmp_path / "new", base(LORA, True)[0], peft, adapters)
    found, expected = load_file(tmp_path / "new" / TENSORS), load_file(LORA / TENSORS)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in found)


def test_a_merged_model_goes_to_the_hugging_face_layout_in_one_call(tmp_path):
    peft, variables, adapters = planned(LORA)
    source = PEFT / "tiny_bert" / "base"
    arguments = (base(LORA)[0], peft, variables, adapters)
    save_merged(tmp_path / "merged", *arguments, source=source)
    model, merged = load(tmp_path / "merged")
    with np.load(LORA / "io.npz") as io:
        close(compiled(model)(merged, **inputs(LORA)), io["logits_merged"])
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == (
        load_file(source / "model.safetensors").keys()
    )


def test_a_table_tied_to_the_output_layer_has_no_equal(tmp_path):
    model, variables = load(MODELS / "llama3")
    ids = jnp.zeros((1, 4), jnp.int32)
    rules = {"embed_tokens/embedding": pj.LoRA(2, alpha=6.0)}
    peft = pj.adapt(model.apply, variables, ids, rules=rules)
    with pytest.raises(AdapterFileError, match="output layer"):
        save_torch(tmp_path / "x", model, peft, peft.init(jax.random.key(0)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        (
            {"layers_0/output/kernel": pj.Hydra(rank=2)},
            ["Hydra", "layers_0", "to_lora"],
        ),
        (
            {
                "layers_0/output/kernel": pj.LoRA(2, alpha=3.0),
                "layers_1/output/kernel": pj.HRA(2),
            },
            ["one method", "layers_0/output/kernel", "layers_1/output/kernel"],
        ),
        ({"classifier/.*": pj.Full()}, ["only leaves of Full"]),
        (
            {
                "layers_0/output/kernel": pj.LoRA(2, alpha=3.0),
                "layers_1/output/kernel": pj.LoRA(2, alpha=3.0, rs=True),
            },
            ["rs=False", "rs"],
        ),
        (
            {
                "layers_0/output/kernel": pj.HRA(2),
                "layers_1/output/kernel": pj.HRA(4),
            },
            ["rank=2", "4"],
        ),
        (
            {
                "layers_0/output/kernel": pj.LoRA(2, alpha=3.0),
                "classifier/kernel": pj.Full(),
            },
            ["classifier/kernel", "whole modules"],
        ),
        ({"layers_0/output/kernel": pj.HRA(2, side="output")}, ["side='input'"]),
        (
            {"layers_0/output/kernel": pj.GLoRA(2, a="none", b="lora")},
            ["layer.0.output.dense", "one form for a and b"],
        ),
        ({"embeddings/word_embeddings/embedding": pj.HRA(2)}, ["embedding"]),
    ],
)
def test_what_has_no_equal_there_is_not_written(tmp_path, rules, named):
    model, variables = base(LORA)
    peft = pj.adapt(model.apply, variables, **inputs(LORA), rules=rules)
    shapes = jax.eval_shape(peft.init, jax.random.key(0))
    adapters = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), shapes)
    with pytest.raises(AdapterFileError) as caught:
        save_torch(tmp_path / "new", model, peft, adapters)
    for word in named:
        assert word in str(caught.value), caught.value
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_half_written(tmp_path, monkeypatch):
    peft, _, adapters = planned(LORA)
    model, target = base(LORA)[0], tmp_path / "new"

    def full(file, arrays):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write", full)
        with pytest.raises(OSError, match="No space"):
            save_torch(target, model, peft, adapters)
    assert not list(tmp_path.iterdir())
    wrong = {**adapters, "classifier/bias": {"value": jnp.zeros(4)}}
    with pytest.raises(AdapterFileError, match="classifier/bias:value"):
        save_torch(target, model, peft, wrong)
    wrong = {**adapters, "classifier/bias": {"value": jnp.full(3, jnp.nan)}}
    with pytest.raises(AdapterFileError, match="classifier/bias:value"):
        save_torch(target, model, peft, wrong)
    assert not list(tmp_path.iterdir())
    target.mkdir()
    save_torch(target, model, peft, adapters)
    with pytest.raises(FileExistsError, match="empty"):
        save_torch(target, model, peft, adapters)
    assert sorted(file.name for file in target.iterdir()) == [CONFIG, TENSORS]
