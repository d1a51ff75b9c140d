"""Prefixes of the torch library's files, there and back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import peftjax as pj
from peftjax.hub import AdapterFileError, load_torch, save_torch
from peftjax.models import ViT
from tests.helpers.model_cases import DATA

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def tiny(name):
    return pj.models.load(DATA / "peft_checkpoints" / f"tiny_{name}" / "base")


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_file_of_the_library_is_read_and_written_as_it_was(name, tmp_path):
    folder = DATA / "torch_prefix" / name
    model, variables = tiny(name)
    rules, adapters = load_torch(folder, model, variables)
    theirs = load_file(folder / TENSORS)
    found = adapters["prefix:output"]["prefix"]
    np.testing.assert_array_equal(found, theirs["prompt_embeddings"])
    assert rules["prefix:output"] == pj.PrefixTuning(length=3)
    ids = jnp.ones((1, 4), jnp.int32)
    peft = pj.adapt(model.apply, variables, ids, rules=rules)
    trained = {"prefix:output", "classifier/kernel", "classifier/bias"}
    assert adapters.keys() == (trained if name == "bert" else {"prefix:output"})
    base = f"tiny_{name}"
    save_torch(tmp_path / "new", model, peft, adapters, base_model_name=base)
    ours = load_file(tmp_path / "new" / TENSORS)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    wrote = json.loads((tmp_path / "new" / CONFIG).read_text())
    wanted = json.loads((folder / CONFIG).read_text())
    # the library names heads that the model does not have
    heads = [name for name in wrote.pop("modules_to_save") or () if name]
    assert heads == (["classifier"] if name == "bert" else [])
    assert wrote.items() <= wanted.items()


def test_the_librarys_network_is_read_as_the_prefix_that_it_makes():
    folder = DATA / "torch_prefix" / "llama_network"
    rules, adapters = load_torch(folder, *tiny("llama"))
    assert rules == {"prefix:output": pj.PrefixTuning(length=3)}
    assert adapters["prefix:output"]["prefix"].shape == (3, 64)


def test_a_network_of_ours_is_written_as_the_prefix_that_it_makes(tmp_path):
    model, variables = tiny("llama")
    rules = {"prefix:output": pj.PrefixTuning(length=3, hidden=4)}
    ids = jnp.ones((1, 4), jnp.int32)
    peft = pj.adapt(model.apply, variables, ids, rules=rules)
    adapters = peft.init(jax.random.key(0))
    save_torch(tmp_path / "new", model, peft, adapters)
    rules, read = load_torch(tmp_path / "new", model, variables)
    other = pj.adapt(model.apply, variables, ids, rules=rules)
    expected = peft.apply(variables, adapters, ids)
    np.testing.assert_allclose(
        other.apply(variables, read, ids), expected, atol=1e-5, rtol=0
    )


def test_what_does_not_fit_is_refused(tmp_path):
    folder = DATA / "torch_prefix" / "llama"
    images = jnp.zeros((1, 8, 8, 1))
    vit = ViT(image_size=8, patch_size=4, width=8, depth=1, num_heads=2, mlp_dim=8)
    shapes = jax.eval_shape(vit.init, jax.random.key(0), images)
    with pytest.raises(AdapterFileError, match="a ViT has no place of a prefix"):
        load_torch(folder, vit, shapes)
    model, variables = tiny("bert")
    with pytest.raises(AdapterFileError, match=r"\[3, 128\]"):
        load_torch(folder, model, variables)
    model, variables = tiny("llama")
    for name in (CONFIG, TENSORS):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    save_file({"prompt_embeddings": np.full((3, 64), np.nan, "f4")}, tmp_path / TENSORS)
    with pytest.raises(AdapterFileError, match="NaN"):
        load_torch(tmp_path, model, variables)
    both = {
        "prefix:output": pj.PrefixTuning(length=2),
        ".*/q_proj/kernel": pj.LoRA(rank=2, alpha=3.0),
    }
    ids = jnp.ones((1, 4), jnp.int32)
    peft = pj.adapt(model.apply, variables, ids, rules=both)
    with pytest.raises(AdapterFileError, match="beside a prefix"):
        save_torch(tmp_path / "n", model, peft, peft.init(jax.random.key(0)))
