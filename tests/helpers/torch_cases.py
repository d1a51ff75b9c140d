"""Adapters that the torch library wrote, and those of ours that it has read."""

from functools import cache
from pathlib import Path

import jax
import numpy as np

import peftjax as pj
from peftjax.hub import load_torch
from peftjax.models import load
from tests.helpers.model_cases import DATA, MODELS, PEFT

READ = DATA / "torch_adapters"
WRITTEN = DATA / "torch_export"
BASES = {
    "tiny_bert": (PEFT / "tiny_bert" / "base", PEFT / "tiny_bert" / "base_io.npz"),
    "tiny_llama": (PEFT / "tiny_llama" / "base", PEFT / "tiny_llama" / "base_io.npz"),
    "bare": (MODELS / "bert", MODELS / "bert" / "io.npz"),
    "gemma3": (MODELS / "gemma3", MODELS / "gemma3" / "io.npz"),
    "qwen2": (MODELS / "qwen2", MODELS / "qwen2" / "io.npz"),
    "roberta": (MODELS / "roberta", MODELS / "roberta" / "io.npz"),
    "t5": (MODELS / "t5", MODELS / "t5" / "io.npz"),
    "flan_t5": (MODELS / "flan_t5", MODELS / "flan_t5" / "io.npz"),
    "vit": (MODELS / "vit", MODELS / "vit" / "io.npz"),
    "dinov2": (MODELS / "dinov2", MODELS / "dinov2" / "io.npz"),
}
LORA, HRA = PEFT / "tiny_bert" / "lora", PEFT / "tiny_bert" / "hra"
TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Rounding of tiny models in float32 is below 2e-5; the library's own bound is 3e-4.
TOLERANCE = 1e-4
SHORT = {"bert": "tiny_bert", "llama": "tiny_llama"}


def adapters(root: Path) -> list[Path]:
    """Return the folders of all adapters."""
    return sorted(file.parent for file in root.glob("*/*/adapter_config.json"))


def name(folder: Path) -> str:
    """Return the name of an adapter, for messages."""
    return f"{folder.parent.name}/{folder.name}"


def base(folder: Path, scan_layers: bool = False):
    """Return model and variables on which an adapter sits."""
    return _loaded(SHORT.get(folder.parent.name, folder.parent.name), scan_layers)


@cache
def _loaded(kind: str, scan_layers: bool):
    return load(BASES[kind][0], scan_layers=scan_layers)


@cache
def inputs(folder: Path):
    """Return the recorded inputs of an adapter's model."""
    kind = SHORT.get(folder.parent.name, folder.parent.name)
    with np.load(BASES[kind][1]) as io:
        if "pixel_values" in io:
            return {"images": io["pixel_values"].transpose(0, 2, 3, 1)}
        names = ("input_ids", "attention_mask", "token_type_ids")
        names += ("decoder_input_ids", "decoder_attention_mask")
        return {key: io[key] for key in names if key in io}


@cache
def compiled(model):
    """Return the compiled model without adapters."""
    return jax.jit(model.apply)


def outputs(result) -> np.ndarray:
    """Return the logits, or a bare encoder's pooled output."""
    return np.asarray(getattr(result, "pooled", result))


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
