"""Saving: the same bits both ways, whole or not at all."""

import json

import jax
import jax.numpy as jnp
import pytest
from safetensors.numpy import load_file

from peftjax.models import load, save
from tests.helpers.model_cases import (
    BERT,
    MODELS,
    PEFT,
    edit_config,
    same_tree,
)

pytestmark = pytest.mark.slow

ALL = [*sorted(MODELS.iterdir()), *sorted(path / "base" for path in PEFT.iterdir())]


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
    "path", ALL, ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_load_save_load_gives_the_same_bits(tmp_path, path, scan):
    model, variables = load(path, scan_layers=scan)
    save(tmp_path / "one", model, variables, source=path)
    save(tmp_path / "many", model, variables, shard_bytes=6000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    for folder in ("one", "many"):
        again, same = load(tmp_path / folder, scan_layers=scan)
        assert again == model
        same_tree(variables, same)
    original = load_file(path / "model.safetensors")
    original.pop("dinov2.embeddings.mask_token", None)  # of its training alone
    if path.name == "clip_text":  # of transformers 5, which leaves the prefix out
        original = {f"text_model.{name}": value for name, value in original.items()}
    same_tree(original, load_file(tmp_path / "one" / "model.safetensors"))


def test_bfloat16_travels_unchanged(tmp_path):
    model, variables = load(BERT, dtype=jnp.bfloat16)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"bfloat16"}
    save(tmp_path / "bf16", model, variables)
    again, same = load(tmp_path / "bf16")
    assert again == model
    assert again.dtype == jnp.bfloat16
    same_tree(variables, same)


def test_save_takes_tokenizer_and_class_names_along(tmp_path, copy):
    source = copy(MODELS / "roberta")
    (source / "tokenizer.json").write_text("{}")
    edit_config(source, id2label={"0": "yes", "1": "no", "2": "perhaps"}, note=7)
    model, variables = load(source)
    save(tmp_path / "home", model, variables, source=source)
    config = json.loads((tmp_path / "home" / "config.json").read_text())
    assert config["id2label"]["2"] == "perhaps"
    assert config["note"] == 7
    assert (tmp_path / "home" / "tokenizer.json").is_file()
    bare, fewer = load(source, head=2)
    save(tmp_path / "two", bare, fewer, source=source)
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}


def test_save_writes_whole_or_not_at_all(tmp_path):
    model, variables = load(BERT)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="absent or empty"):
        save(tmp_path / "full", model, variables)
    broken = {"params": {**variables["params"], "extra": jnp.zeros(2)}}
    with pytest.raises(ValueError, match=r"extra: expected shape None, found \(2,\)"):
        save(tmp_path / "out", model, broken)
    less = {"params": {k: v for k, v in variables["params"].items() if k != "pooler"}}
    with pytest.raises(ValueError, match="pooler/bias"):
        save(tmp_path / "out", model, less)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
