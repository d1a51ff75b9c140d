"""A tiny Llama of random weights in a GGUF file, written as llama.cpp writes it."""

import json

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from gguf import (
    MODEL_ARCH_NAMES,
    GGUFValueType,
    GGUFWriter,
    get_tensor_name_map,
    quants,
)
from safetensors.numpy import load_file

from peftjax.models.gguf_llama import _LAYER, _OPTIONAL, _SIZES, _WHOLE
from peftjax.models.llama.family import LLAMA
from tests.helpers.llm_case import tiny_llama

# Names after `llama.`.
FACTS = {
    "block_count": 2,
    "embedding_length": 32,
    "feed_forward_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
}


def write_gguf(path, kind=None, *, arch="llama", facts=(), texts=(), lists=()):
    """Write the tiny Llama, its matrices as blocks of a kind.

    Returns:
        The model and its variables, rounded as the file has them.
    """
    model, variables = tiny_llama()
    writer = GGUFWriter(path, arch)
    for name, value in {**FACTS, **dict(facts)}.items():
        own = name.startswith("tokenizer.")
        _add(writer, name if own else f"llama.{name}", value)
    for name, value in dict(texts).items():
        writer.add_string(name, value)
    for name, value in dict(lists).items():
        writer.add_array(name, value)
    theirs = {mine: name for name, mine in {**_WHOLE, **_LAYER}.items()}
    rounded = {}
    where = LLAMA.sources(model)
    for name, leaf in flatten_dict(variables["params"], sep="/").items():
        array = np.array(leaf).transpose(where[name].order)
        stem, _, end = where[name].tensors[0].rpartition(".")
        whole = stem in theirs
        layer, part = ("", stem) if whole else stem.split(".", 3)[2:]
        kept = array
        if kind is not None and array.ndim == 2:
            kept = quants.dequantize(quants.quantize(array, kind), kind)
        rounded[name] = kept.transpose(where[name].order)
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            count = 4 if "q_proj" in part else 2
            halves = array.reshape(count, 2, -1, array.shape[-1])
            array = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
        stored, raw = array, None
        if kind is not None and array.ndim == 2:
            stored, raw = quants.quantize(array, kind), kind
        new = f"{'' if whole else f'blk.{layer}.'}{theirs[part]}.{end}"
        writer.add_tensor(new, stored, raw_dtype=raw)
    _write(writer)
    return model, {"params": unflatten_dict(rounded, sep="/")}


def write_original(path, folder, silent=()):
    """Write a checkpoint of HF's; its names are from the package's own table.

    Args:
        path: of the file.
        folder: of the checkpoint.
        silent: what the metadata leaves out.
    """
    config = json.loads((folder / "config.json").read_text())
    kind, depth = config["model_type"], config["num_hidden_layers"]
    writer = GGUFWriter(path, kind)
    theta = config["rope_parameters"]["rope_theta"]
    facts = {"rope.freq_base": theta}
    facts |= {theirs: config[ours] for ours, theirs in _SIZES.items()}
    facts |= {theirs: config.get(ours) for ours, theirs in _OPTIONAL.items()}
    for name, value in facts.items():
        if value is not None and name not in silent:
            _add(writer, f"{kind}.{name}", value)
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == kind)
    names = get_tensor_name_map(arch, depth)
    for name, array in load_file(folder / "model.safetensors").items():
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), array)
    _write(writer)


def _add(writer, name, value):
    whole = isinstance(value, int)
    vtype = GGUFValueType.UINT32 if whole else GGUFValueType.FLOAT32
    writer.add_key_value(name, value, vtype)


def _write(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
