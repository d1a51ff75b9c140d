"""Adapters of the torch library compute the same here, on all layouts."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from peftjax.hub import AdapterFileError, load_torch, save_torch
from peftjax.hub.torch.codecs import FIELDS
from peftjax.hub.torch.config import complete
from peftjax.hub.torch.modules import Modules
from peftjax.models import load
from peftjax.models.layers import stack_layers
from tests.helpers import torch_cases
from tests.helpers.model_cases import MODELS, PEFT
from tests.helpers.torch_cases import (
    HRA,
    LORA,
    READ,
    TENSORS,
    TOLERANCE,
    base,
    check_adapted,
    check_merged,
    compiled,
    inputs,
    outputs,
    planned,
)

pytestmark = pytest.mark.slow

# Applied as well as merged; for the others the tests of their methods compare the two.
APPLIED = {"lora", "dora", "hra", "hra_gs", "lora_patterns", "lora_layers"}
# Adapters that differ between layers do not fit into scanned ones.
UNEVEN = {"lora_patterns", "lora_layers"}
GIVEN = [*torch_cases.adapters(PEFT), *torch_cases.adapters(READ)]


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


def targets(**fields):
    """Return the adapted paths of the tiny BERT, by the paths of its adapters."""
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
