"""X-LoRA in the torch library's files, there and back."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import peftjax as pj
from peftjax.hub import AdapterFileError, load_torch, save_torch
from tests.helpers.model_cases import DATA, PEFT

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
FILES = DATA / "torch_xlora"


def tiny(scan_layers=False):
    return pj.models.load(PEFT / "tiny_llama" / "base", scan_layers=scan_layers)


LLAMA = tiny()


def planned(model, variables, rules):
    ids = jax.ShapeDtypeStruct((2, 4), jnp.int32)
    return pj.adapt(model.apply, variables, ids, rules=rules, strict=True)


@pytest.mark.parametrize(("name", "scan"), [("share", False), ("each", True)])
def test_files_of_the_library_are_read_and_written_as_they_were(name, scan, tmp_path):
    folder = FILES / name
    model, variables = tiny(scan)
    rules, adapters = load_torch(folder, model, variables)
    peft = planned(model, variables, rules)
    with np.load(folder / "io.npz") as io:
        logits = jax.jit(peft.apply)(variables, adapters, io["ids"])
        np.testing.assert_allclose(logits, io["logits"], atol=1e-4, rtol=0)
    new = tmp_path / "new"
    save_torch(new, model, peft, adapters, base_model_name="tiny_llama")
    for part in ("", "0", "1"):
        ours, theirs = (load_file(place / part / TENSORS) for place in (new, folder))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
        wrote, wanted = (
            json.loads((place / part / CONFIG).read_text()) for place in (new, folder)
        )
        paths = wrote.pop("adapters", {})
        wrote.pop("target_modules", None)  # other names of the same modules
        assert wrote.items() <= wanted.items()
        assert paths == ({i: str(new / i) for i in "01"} if part == "" else {})


def edit(folder, **fields):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **fields}))


def refused(folder, *named):
    with pytest.raises(AdapterFileError) as caught:
        load_torch(folder, *LLAMA)
    for word in (str(folder), *named):
        assert word in str(caught.value), caught.value


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"adapters": {"0": "a/0", "1": "/etc"}}, ["module 1", "'/etc'", "Copy"]),
        ({"adapters": {"0": "a/0", "1": "../x/.."}}, ["module 1", "no path out"]),
        ({"adapters": {"0": "a/0", "1": "b/0"}}, ["module 1", "of its own"]),
        ({"adapters": {"math": "a/0"}}, ["adapters", '"0", "1"']),
        ({"adapters": {}}, ["adapters"]),
        ({"xlora_depth": 2}, ["xlora_depth: expected 1, found 2"]),
        ({"top_k_lora": 1}, ["top_k_lora = 1"]),
        ({"global_scaling_weight": 2.0}, ["global_scaling_weight"]),
        ({"softmax_temperature": 0.5}, ["softmax_temperature"]),
        ({"hidden_size": 16}, ["hidden_size", "32"]),
        ({"layerwise_scalings": True}, ["weight", "(8, 32)", "[2, 32]"]),
    ],
)
def test_what_has_no_equal_is_refused(fields, named, tmp_path):
    folder = shutil.copytree(FILES / "share", tmp_path / "copy")
    edit(folder, **fields)
    refused(folder, *named)


def test_modules_and_routers_of_other_kinds_are_refused(tmp_path):
    folder = shutil.copytree(FILES / "share", tmp_path / "copy")
    edit(folder / "1", lora_dropout=0.1)
    refused(folder, "copy/1", "without dropout", "Set lora_dropout to 0")
    shutil.rmtree(folder / "1")
    (folder / "1").symlink_to(".")
    refused(folder, "copy/1", "peft_type", "XLORA")
    save_file({}, folder / TENSORS)
    refused(folder, TENSORS, "expected a router", "internal_xlora_classifier")
    bert = pj.models.load(PEFT / "tiny_bert" / "base")
    with pytest.raises(AdapterFileError, match="of a Bert.* here returns"):
        load_torch(FILES / "share", *bert)


Q, X = "layers_0/self_attn/q_proj/kernel", pj.XLoRA(2, 3, hidden=32, reads="norm")


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ({Q: X, "norm/scale": pj.Full()}, "norm/scale.*nothing beside X-LoRA.*Full"),
        ({"lm_head/kernel": X}, "lm_head.weight: .* below 'model.'"),
        ({Q: dataclasses.replace(X, reads="embed_tokens")}, "reads 'norm', found"),
    ],
)
def test_what_the_library_has_no_place_for_is_not_written(rules, named, tmp_path):
    model, variables = LLAMA
    peft = planned(model, variables, rules)
    adapters = peft.init(jax.random.key(0))
    with pytest.raises(AdapterFileError, match=named):
        save_torch(tmp_path / "new", model, peft, adapters)
    assert not list(tmp_path.iterdir())
