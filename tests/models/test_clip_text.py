"""CLIP's text tower alone: the original's outputs and files, both ways."""

import shutil
from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import peftjax as pj
from peftjax.models import CheckpointError, ClipText, family_of, load, save
from peftjax.models.clip.towers import TextTower
from tests.helpers.model_cases import (
    MODELS,
    check_hidden_states,
    close,
    edit_config,
    edit_tensors,
    reference,
    run,
    same_tree,
)

NAMES = ("clip_text", "clip_text_projected")
WEIGHTS = "model.safetensors"
PREFIX = "text_model."


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_original(name, scan):
    model, variables, io = reference(MODELS / name, scan_layers=scan)
    assert isinstance(model, ClipText)
    found, hidden = run(model, variables, io["input_ids"])
    close(found.hidden, io["last_hidden_state"])
    projected = name == "clip_text_projected"
    close(found.pooled, io["text_embeds" if projected else "pooler_output"])
    check_hidden_states(hidden, io, np.ones(io["input_ids"].shape, bool))


@pytest.mark.parametrize("name", NAMES)
def test_files_come_back_with_the_names_of_the_original(tmp_path, name):
    """With the prefix, without which transformers 4 would not find them."""
    model, variables = load(MODELS / name)
    save(tmp_path / "new", model, variables, source=MODELS / name)
    found, given = (load_file(x / WEIGHTS) for x in (tmp_path / "new", MODELS / name))
    assert all(key.startswith((PREFIX, "text_projection")) for key in found)
    if not any(key.startswith(PREFIX) for key in given):  # of transformers 5
        given = {PREFIX + key: value for key, value in given.items()}
    same_tree(found, given)
    again, same = load(tmp_path / "new")
    assert again == model
    same_tree(same, variables)


def test_the_tower_is_that_of_a_whole_clip():
    whole, variables, io = reference(MODELS / "clip")
    text = variables["params"]["text"]
    model = ClipText(whole.config.text)
    found = jax.jit(model.apply)({"params": {"text": text}}, io["input_ids"])
    tower = jax.jit(TextTower(whole.config.text).apply)
    same_tree(found, tower({"params": text}, io["input_ids"]))


def test_adapters_are_placed_as_in_other_texts():
    model, variables, io = reference(MODELS / "clip_text")
    rules = pj.presets.rules("clip_text", pj.LoRA(rank=2, alpha=3.0))
    peft = pj.adapt(model.apply, variables, io["input_ids"], rules=rules, strict=True)
    assert {site.path for site in peft.sites} == {
        f"text/layers_{i}/self_attn/{part}_proj/kernel" for i in (0, 1) for part in "qv"
    }
    assert family_of(model).head(model) is None


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(MODELS / "clip_text_projected", tmp_path / "copy")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["CLIPVisionModel"]}, "architectures: expected one of CLIP"),
        ({"model_type": "clip_vision_model"}, "'clip_vision_model'.*like clip"),
        ({"num_hidden_layers": 3}, "text/layers_2"),
        ({"max_position_embeddings": 77}, r"expected shape \(77, 24\)"),
        ({"hidden_act": "mish"}, "hidden_act: .*mish"),
        ({"eos_token_id": "2"}, "eos_token_id: expected a number"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(copy, changes, message):
    edit_config(copy, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(copy)


def test_a_projection_that_is_no_matrix_of_the_tower_is_refused(copy):
    name = "text_projection.weight"
    edit_tensors(copy, lambda x: x.update({name: x[name][:, :3]}))
    with pytest.raises(CheckpointError, match=r"text_projection.*\(20, 24\)"):
        load(copy)
    edit_tensors(copy, lambda x: x.update({"further": x.pop(name)}))
    with pytest.raises(CheckpointError, match="no use to it: .'further'"):
        load(copy)


def test_texts_that_do_not_fit_are_refused():
    model, variables = load(MODELS / "clip_text")
    call = partial(jax.eval_shape, model.apply, variables)
    with pytest.raises(ValueError, match="at most 14 tokens.*found 15; truncate"):
        call(np.ones((1, 15), np.int32))
    with pytest.raises(ValueError, match="it encodes texts"):
        load(MODELS / "clip_text", head=2)
