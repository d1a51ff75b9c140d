"""A Llama in a GGUF file: its metadata as a `config.json`, its tensors by HF's names.

Blocks of few bits are dequantised to float32 by the package `gguf`, one tensor at a
time. Of the architectures `llama`, `qwen2` and `qwen3` are read: others order or
compute their parts in ways of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from peftjax.data.errors import DataError
from peftjax.data.gguf_file import GGUF, open_gguf
from peftjax.models.files import CheckpointError, Tensor

_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAME = re.compile(r"(?:blk\.(\d{1,4})\.)?(\w{1,20})\.(weight|bias)")
# Name in `config.json`, name after that of the architecture; the rest has defaults.
_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_KINDS = ("llama", "qwen2", "qwen3")
_OPTIONAL = {
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "vocab_size": "vocab_size",
}


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `config.json` would say, and the tensors under HF's names.

    Raises:
        CheckpointError: the file is damaged, one of several, of another architecture,
            or holds blocks that the package cannot dequantise.
        ImportError: the package `gguf` is absent.
    """
    try:
        file = open_gguf(path)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    config = _config(file)
    tensors = {}
    for name, tensor in file.tensors.items():
        if name == "rope_freqs.weight":
            raise CheckpointError(
                f"{path}: {name}: frequencies that its metadata does not explain; "
                "expected a file without them: load the original's safetensors"
            )
        original, heads = _named(path, name, config)
        tensors[original] = _tensor(path, name, tensor, heads)
    return config, tensors


def _config(file: GGUF) -> dict[str, Any]:
    kind = file.facts.get("general.architecture")
    if kind not in _KINDS:
        raise CheckpointError(
            f"{file.path}: general.architecture: expected {', '.join(_KINDS)}, found "
            f"{kind!r:.80}; load the original's safetensors"
        )

    def fact(name: str) -> Any:
        value = file.facts.get(f"{kind}.{name}")
        # Stored in 32 bits: 1e-5 is to be 1e-5 again.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    missing = [name for name in _SIZES.values() if fact(name) is None]
    if missing:
        raise CheckpointError(
            f"{file.path}: expected {kind}.{missing[0]} in its metadata, found none"
        )
    unlike = {"expert_count": (None, 0), "rope.scaling.type": (None, "none", "linear")}
    for name, neutral in unlike.items():
        if fact(name) not in neutral:
            raise CheckpointError(
                f"{file.path}: {kind}.{name}: expected none, found {fact(name)!r:.80}"
            )
    names = {**_SIZES, **_OPTIONAL}
    config = {ours: fact(theirs) for ours, theirs in names.items()}
    embedded = file.tensors.get("token_embd.weight")
    if config["vocab_size"] is None and embedded is not None:
        config["vocab_size"] = int(embedded.shape[-1])
    heads, width = config["num_attention_heads"], config["hidden_size"]
    whole = all(isinstance(x, int) and x > 0 for x in (heads, width))
    size = config["head_dim"] or (width // heads if whole else None)
    # Where a file is silent llama.cpp's own defaults hold, not those of `config.json`.
    groups = config["num_key_value_heads"] or heads
    config |= {"head_dim": size, "num_key_value_heads": groups}
    if fact("rope.dimension_count") not in (None, size):
        raise CheckpointError(
            f"{file.path}: {kind}.rope.dimension_count: expected the whole head, "
            f"{size}, found {fact('rope.dimension_count')!r:.80}"
        )
    rope: dict[str, Any] = {"rope_theta": fact("rope.freq_base") or 10000.0}
    if fact("rope.scaling.type") == "linear":
        rope |= {"rope_type": "linear", "factor": fact("rope.scaling.factor")}
    return {
        **{name: value for name, value in config.items() if value is not None},
        "model_type": kind,
        "rope_parameters": rope,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": kind != "qwen2" and "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
    }


def _named(path: Path, name: str, config: Mapping[str, Any]) -> tuple[str, int]:
    """Return HF's name, and of query and key the heads whose rows are interleaved."""
    match = _NAME.fullmatch(name)
    layer, part, leaf = match.groups() if match else (None, "", "")
    known = _WHOLE if layer is None else _LAYER
    if part not in known:
        raise CheckpointError(f"{path}: {name!r:.80}: no tensor of a Llama")
    if layer is None:
        return f"{known[part]}.{leaf}", 0
    heads = 0
    if config["model_type"] == "llama" and part in ("attn_q", "attn_k"):
        heads = config["num_attention_heads"]
        if part == "attn_k":
            heads = config.get("num_key_value_heads", heads)
    return f"model.layers.{int(layer)}.{known[part]}.{leaf}", heads


def _tensor(path: Path, name: str, tensor: Any, heads: int) -> Tensor:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    shape = tuple(int(size) for size in reversed(tensor.shape))
    kind = tensor.tensor_type
    plain: dict[Any, Callable[[], np.ndarray]] = {
        GGMLQuantizationType.F16: lambda: np.array(tensor.data),
        GGMLQuantizationType.BF16: lambda: np.array(tensor.data).view(jnp.bfloat16),
    }
    if heads and (not isinstance(heads, int) or shape[0] % (2 * heads)):
        raise CheckpointError(
            f"{path}: {name}: expected rows of {heads} heads of even size, found "
            f"{shape}"
        )

    def read() -> np.ndarray:
        try:
            found = plain.get(kind, lambda: dequantize(tensor.data, kind))()
        except (NotImplementedError, KeyError) as error:
            raise CheckpointError(
                f"{path}: {name}: blocks of kind {kind.name}, which gguf cannot "
                "dequantise; expected another quantisation"
            ) from error
        found = found.reshape(shape)
        if not heads:
            return found
        # llama.cpp rotates neighbours, HF the halves of a head.
        pairs = found.reshape(heads, shape[0] // heads // 2, 2, *shape[1:])
        return pairs.swapaxes(1, 2).reshape(shape)

    dtypes = {
        GGMLQuantizationType.F16: "float16",
        GGMLQuantizationType.BF16: "bfloat16",
    }
    return Tensor(shape, jnp.dtype(dtypes.get(kind, "float32")), read)
