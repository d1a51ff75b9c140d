"""Files that are damaged, of another kind or ask for something else: named, refused."""

import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from peftjax.models import CheckpointError, load, save
from tests.helpers.model_cases import (
    BERT,
    MODELS,
    edit_config,
    edit_tensors,
)


def truncated(path):
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def empty(path):
    (path / "model.safetensors").write_bytes(b"")


def wrong_shape(path):
    name = "encoder.layer.1.output.dense.weight"
    edit_tensors(path, lambda t: t.update({name: t[name][:, :-1].copy()}))


def wrong_config(path):
    edit_config(path, hidden_size=48)


def integers(path):
    name = "pooler.dense.bias"
    edit_tensors(path, lambda t: t.update({name: t[name].astype(np.int32)}))


def flat_patches(path):
    """Make the kernel of the patches a matrix."""
    name = "vit.embeddings.patch_embeddings.projection.weight"
    edit_tensors(path, lambda t: t.update({name: t[name].reshape(24, -1)}))


def left_over(path):
    edit_tensors(path, lambda t: t.update({"adapter.weight": np.zeros(3)}))


def absent(path):
    edit_tensors(path, lambda t: t.pop("encoder.layer.0.output.dense.bias"))


def too_many_layers(path):
    edit_config(path, num_hidden_layers=10**9)


def wrong_family(path):
    edit_config(path, model_type="llama")


def unknown_family(path):
    edit_config(path, model_type="gpt2")


def no_config(path):
    (path / "config.json").unlink()


def not_json(path):
    (path / "config.json").write_text('{"model_type": ')


def a_list(path):
    (path / "config.json").write_text("[1]")


def decoder(path):
    edit_config(path, is_decoder=True)


def quantised(path):
    edit_config(path, quantization_config={"bits": 4})


def bad_activation(path):
    edit_config(path, hidden_act="softsign")


def bad_number(path):
    edit_config(path, hidden_size="24")


def bad_rate(path):
    edit_config(path, hidden_dropout_prob=1.0)


def odd_heads(path):
    edit_config(path, num_attention_heads=5)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, r"model\.safetensors: cannot read the file: .*truncated"),
        (empty, "0 bytes"),
        (wrong_shape, r"layer\.1\.output.*expected shape \(24, 40\), found \(24, 39\)"),
        (wrong_config, r"expected shape \(.*48.*\), found \(.*24"),
        (integers, "pooler.dense.bias: expected floating values, found int32"),
        (left_over, r"1 tensors are of no use to it: \['adapter\.weight'\]"),
        (absent, r"1 parameters are in no tensor: \['layers_0/output/bias'\]"),
        (too_many_layers, "1000000000 layers, but the file has only"),
        (wrong_family, "'llama', tensors that look like bert or roberta"),
        (unknown_family, "'gpt2'.*expected both"),
        (no_config, "expected a config.json with model_type"),
        (not_json, "not a JSON file"),
        (a_list, "expected a JSON object, found list"),
        (decoder, "is_decoder: expected False"),
        (quantised, "quantization_config: expected None"),
        (bad_activation, "hidden_act: .*softsign"),
        (bad_number, "hidden_size: expected a number, found '24'"),
        (bad_rate, "hidden_dropout_prob: expected at least 0 and less than 1"),
        (odd_heads, "multiple of num_attention_heads"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_is_named(copy, damage, message):
    path = copy()
    damage(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_damaged_vit_is_named(copy):
    path = copy(MODELS / "vit")
    flat_patches(path)
    with pytest.raises(CheckpointError, match=r"expected shape \(24, 3, 4, 4\)"):
        load(path)
    edit_config(path, hidden_act="relu")
    with pytest.raises(CheckpointError, match="hidden_act: expected gelu"):
        load(path)


def test_pickles_are_refused_unread(tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    for name in ("pytorch_model.bin", "model.pt", "model.ckpt", "flax_model.msgpack"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_bytes(pickle.dumps(Evil()))
        for path in (folder, folder / name):
            with pytest.raises(CheckpointError, match="may run code"):
                load(path)
    np.savez(tmp_path / "evil.npz", **{"Transformer/x": np.array([Evil()], object)})
    with pytest.raises(CheckpointError, match="pickled objects"):
        load(tmp_path / "evil.npz")
    disguised = tmp_path / "model.safetensors"
    disguised.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="cannot read the file"):
        load(disguised)
    assert not marker.exists()


@pytest.fixture
def shards(tmp_path):
    """Return a folder of shards, their index, and how to rewrite it."""
    model, variables = load(BERT)
    save(tmp_path / "shards", model, variables, shard_bytes=9000)
    index = tmp_path / "shards" / "model.safetensors.index.json"

    def rewrite(change):
        content = json.loads(index.read_text())
        change(content["weight_map"])
        index.write_text(json.dumps(content))

    return tmp_path / "shards", rewrite


@pytest.mark.parametrize(
    "file",
    ["../secret.safetensors", "/etc/x.safetensors", "a\\b.safetensors", 7, "x.bin"],
)
def test_an_index_does_not_lead_out_of_its_folder(shards, file):
    folder, rewrite = shards
    save_file({"pooler.dense.bias": np.zeros(24)}, folder.parent / "secret.safetensors")
    rewrite(lambda names: names.update({"pooler.dense.bias": file}))
    with pytest.raises(CheckpointError, match="in the same folder, found"):
        load(folder)


def test_shards_and_index_agree(shards):
    folder, rewrite = shards
    first = sorted(folder.glob("*.safetensors"))[0]
    rewrite(lambda names: names.pop("pooler.dense.bias"))
    with pytest.raises(CheckpointError, match=r"not listed \['pooler\.dense\.bias'\]"):
        load(folder)
    rewrite(lambda names: names.clear())
    with pytest.raises(CheckpointError, match="expected weight_map"):
        load(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="expected one weight file, found"):
        load(folder)
    first.unlink()


def test_a_missing_shard_is_named(shards):
    folder, _ = shards
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"{lost.name} is not in"):
        load(folder)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="found none"):
        load(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        CheckpointError, match=r"expected a \.safetensors, \.npz or \.gguf"
    ):
        load(tmp_path / "notes.txt")


def test_heads_that_the_models_here_do_not_have(copy, tmp_path):
    path = copy(MODELS / "roberta")
    edit_config(path, architectures=["RobertaForTokenClassification"])
    with pytest.raises(CheckpointError, match="TokenClassification"):
        load(path)
    with np.load(MODELS / "vit" / "google.npz") as file:
        arrays = {**file, "pre_logits/kernel": np.zeros((24, 24), np.float32)}
        arrays["pre_logits/bias"] = np.zeros(24, np.float32)
    np.savez(tmp_path / "in21k.npz", **arrays)
    with pytest.raises(CheckpointError, match="pre_logits"):
        load(tmp_path / "in21k.npz")
    model, _ = load(tmp_path / "in21k.npz", head=9)
    assert model.num_classes == 9


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "yarn", "factor": 2.0}, "rope_type: expected default, linear"),
        ({"rope_type": "linear"}, "factor: expected more than 0"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor: expected more"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary"),
    ],
)
def test_rope_that_is_not_computed_is_refused(copy, scaling, message):
    path = copy(MODELS / "llama3")
    edit_config(path, rope_parameters={"rope_theta": 1e4, **scaling})
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_older_spelling_of_rope(copy):
    path = copy(MODELS / "llama_biased")
    expected, _ = load(path)
    scaling = {"type": "linear", "factor": 4.0}
    edit_config(path, rope_parameters=None, rope_scaling=scaling, rope_theta=1e4)
    assert load(path)[0] == expected
