"""The torch library's adapter files: the same function both ways, or a clear error."""

import json
import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import peftjax as pj
from peftjax.hub import AdapterFileError, load_torch, save_merged, save_torch
from peftjax.hub.torch import save as writer
from peftjax.models import load
from peftjax.models.layers import stack_layers
from tests.helpers import torch_cases
from tests.helpers.model_cases import MODELS, PEFT
from tests.helpers.torch_cases import READ, WRITTEN, base, compiled, inputs, outputs

LORA, HRA = PEFT / "tiny_bert" / "lora", PEFT / "tiny_bert" / "hra"
GIVEN = [*torch_cases.adapters(PEFT), *torch_cases.adapters(READ)]
OURS = torch_cases.adapters(WRITTEN)
TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Rounding of tiny models in float32 is below 2e-5; the library's own bound is 3e-4.
TOLERANCE = 1e-4
# Applied as well as merged; for the others the tests of their methods compare the two.
APPLIED = {"lora", "dora", "hra", "hra_gs", "lora_patterns", "lora_layers"}
# Adapters that differ between layers do not fit into scanned ones.
UNEVEN = {"lora_patterns", "lora_layers"}


def planned(folder, scan_layers=False, source=None):
    """Return the plan for an adapter, the variables and the adapters."""
    model, variables = base(source or folder, scan_layers)
    rules, adapters = load_torch(folder, model, variables)
    given = inputs(source or folder)
    peft = pj.adapt(model.apply, variables, **given, rules=rules, strict=True)
    return peft, variables, adapters


def close(found, expected):
    np.testing.assert_allclose(outputs(found), expected, atol=TOLERANCE, rtol=0)


def check_adapted(plan, folder, expected):
    """Assert the logits of the adapted model."""
    peft, variables, adapters = plan
    close(jax.jit(peft.apply)(variables, adapters, **inputs(folder)), expected)


def check_merged(plan, folder, expected, scan_layers=False):
    """Assert the logits of the merged model."""
    peft, variables, adapters = plan
    merged = jax.jit(peft.merge)(variables, adapters)
    model, _ = base(folder, scan_layers)
    close(compiled(model)(merged, **inputs(folder)), expected)


@pytest.mark.parametrize("folder", GIVEN, ids=torch_cases.name)
def test_adapters_of_the_torch_library_compute_the_same_here(folder, tmp_path):
    with np.load(folder / "io.npz") as io:
        record = dict(io)
    plan = peft, _, adapters = planned(folder)
    check_merged(plan, folder, record["logits_merged"])
    if folder.name in APPLIED:
        check_adapted(plan, folder, record["logits_adapted"])
    assert sum(site.trainable for site in peft.sites) == record["n_trainable"]
    model, variables = base(folder)
    frozen = outputs(compiled(model)(variables, **inputs(folder)))
    assert np.abs(frozen - record["logits_adapted"]).max() > 100 * TOLERANCE
    check_written_again(folder, peft, adapters, tmp_path / "new")


def check_written_again(folder, peft, adapters, new):
    """Assert that what was read is written as it was, up to the names of targets."""
    model, variables = base(folder)
    save_torch(new, model, peft, adapters)
    rules, again = load_torch(new, model, variables)
    assert jax.tree.structure(again) == jax.tree.structure(adapters)
    jax.tree.map(np.testing.assert_array_equal, again, adapters)
    assert rules == dict(peft.rules)
    found, expected = load_file(new / TENSORS), load_file(folder / TENSORS)
    copies = {
        k for k in expected if ".original_module." in k or ".modules_to_save." in k
    }
    assert found.keys() == expected.keys() - copies
    for key in found:
        np.testing.assert_array_equal(found[key], expected[key])


def test_scanned_layers_compute_the_same():
    folder = READ / "llama" / "hra"
    with np.load(folder / "io.npz") as io:
        plan = planned(folder, scan_layers=True)
        check_adapted(plan, folder, io["logits_adapted"])
        check_merged(plan, folder, io["logits_merged"], scan_layers=True)


@pytest.mark.parametrize("folder", GIVEN, ids=torch_cases.name)
def test_scanned_layers_get_the_same_arrays(folder):
    model, variables = base(folder, scan_layers=True)
    if folder.name in UNEVEN:
        with pytest.raises(AdapterFileError, match="scan_layers=False"):
            load_torch(folder, model, variables)
        return
    rules, scanned = load_torch(folder, model, variables)
    unrolled_rules, unrolled = load_torch(folder, *base(folder))
    expected = dict(unrolled)
    if any("_0/" in path for path in unrolled):
        name = "blocks" if "blocks_0" in " ".join(unrolled) else "layers"
        expected = stack_layers(unrolled, name)
    assert jax.tree.structure(scanned) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, scanned, expected)
    assert [*rules.values()] == [*unrolled_rules.values()]


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


# What a configuration means.


def targets(**fields):
    """Return the adapted paths of the tiny BERT, by the paths of its adapters."""
    from peftjax.hub.torch.codecs import FIELDS
    from peftjax.hub.torch.config import complete
    from peftjax.hub.torch.modules import Modules

    model, variables = base(LORA)
    shapes = {
        "/".join(str(k.key) for k in keys[1:]): leaf.shape
        for keys, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    config = complete({"peft_type": "LORA", **fields}, FIELDS)
    return {*Modules(model, shapes, "hf", prefix=True).targeted(config)}


LAYER = "bert.encoder.layer"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"target_modules": [f"{LAYER}.1.output.dense"]}, {f"{LAYER}.1.output.dense"}),
        (
            {"target_modules": ["output.dense"], "layers_to_transform": 1},
            {f"{LAYER}.1.output.dense", f"{LAYER}.1.attention.output.dense"},
        ),
        (
            {
                "target_modules": ["output.dense"],
                "exclude_modules": ["attention.output.dense"],
                "layers_to_transform": [0, 7],
                "layers_pattern": "layer",
            },
            {f"{LAYER}.0.output.dense"},
        ),
        (
            {"target_modules": r".*\.0\.attention\.self\.(key|query)"},
            {f"{LAYER}.0.attention.self.key", f"{LAYER}.0.attention.self.query"},
        ),
        (
            {
                "target_modules": ["dense", "classifier"],
                "exclude_modules": r".*layer.*",
                "modules_to_save": ["classifier"],
            },
            {"bert.pooler.dense"},
        ),
        (
            {"target_modules": "all-linear", "exclude_modules": ["query", "dense"]},
            {
                f"{LAYER}.{i}.attention.self.{p}"
                for i in (0, 1)
                for p in ("key", "value")
            },
        ),
        (
            {"target_modules": ["position_embeddings"]},
            {"bert.embeddings.position_embeddings"},
        ),
    ],
)
def test_which_modules_a_configuration_means(fields, expected):
    assert targets(**fields) == expected


def test_fused_and_separate_attention_are_told_apart():
    folder = READ / "vit" / "dora"
    model, variables = load(MODELS / "vit", fused_qkv=True)
    with pytest.raises(AdapterFileError, match=r"q_proj.*blocks_0/attn/qkv.*fused_qkv"):
        load_torch(folder, model, variables)


def test_older_names_of_a_vit_are_known_by_themselves(tmp_path):
    folder = READ / "vit" / "hra"
    peft, variables, adapters = planned(folder)
    model = base(folder)[0]
    save_torch(tmp_path / "old", model, peft, adapters, layout="hf")
    names = " ".join(load_file(tmp_path / "old" / TENSORS))
    assert "vit.encoder.layer.1.attention.attention.query.hra_u" in names
    _, again = load_torch(tmp_path / "old", model, variables)
    jax.tree.map(np.testing.assert_array_equal, again, adapters)


def test_shapes_suffice_to_load():
    model, variables = base(HRA)
    rules, adapters = load_torch(HRA, model, jax.eval_shape(lambda: variables))
    assert rules == load_torch(HRA, model, variables)[0]
    assert {str(a.dtype) for a in jax.tree.leaves(adapters)} == {"float32"}


# Bad input.


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


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"use_quantum": 3, "b_config": {}}, ["b_config = {}", "use_quantum = 3"]),
        ({"peft_type": "ADALORA"}, ["ADALORA", "LORA, GLORA"]),
        ({"peft_type": ["LORA"]}, ["peft_type"]),
        ({"init_lora_weights": "pissa"}, ["init_lora_weights", "pissa"]),
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
    ],
)
def test_a_configuration_without_an_equal_here_is_refused(copy, fields, named):
    edit(copy, **fields)
    refused(copy, *named)


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


@pytest.mark.parametrize("text", ["", "{", "[]", '{"peft_type": "LORA"', '"\ud800'])
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


def test_repeated_weights_of_the_base_model_are_compared(copy):
    model, variables = base(LORA)
    name = "base_model.model.bert.pooler.dense.bias"
    bias = np.asarray(variables["params"]["pooler"]["bias"])
    edit_tensors(copy, lambda tensors: tensors.update({name: bias}))
    load_torch(copy, model, variables)
    refused(copy, "pooler.dense.bias", model=(model, jax.eval_shape(lambda: variables)))


def test_another_model_is_refused():
    refused(LORA, "target_modules", model=base(PEFT / "tiny_llama" / "lora"))
    headless = load(PEFT / "tiny_bert" / "base", head="none")
    refused(LORA, "classifier.weight", "head", model=headless)
    refused(LORA, "(4, 24)", "[4, 32]", model=base(READ / "bare" / "lora"))


def test_a_table_tied_to_the_output_layer_has_no_equal(tmp_path):
    model, variables = load(MODELS / "llama3")
    ids = jnp.zeros((1, 4), jnp.int32)
    rules = {"embed_tokens/embedding": pj.LoRA(2, alpha=6.0)}
    peft = pj.adapt(model.apply, variables, ids, rules=rules)
    with pytest.raises(AdapterFileError, match="output layer"):
        save_torch(tmp_path / "x", model, peft, peft.init(jax.random.key(0)))
    assert not list(tmp_path.iterdir())


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


# What cannot be written.


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
