"""Llama and its kin for loading, saving, adapter files and presets."""

from __future__ import annotations

from collections.abc import Collection

from peftjax.models.config_json import Json
from peftjax.models.family import (
    Checkpoint,
    Family,
    Head,
    Heads,
    Placements,
    text_example,
)
from peftjax.models.llama.config_file import read_llama, write_llama
from peftjax.models.llama.model import Llama
from peftjax.models.names import Kind, Named, module

# In the names of the original, with slashes.
_LAYER: dict[str, Kind] = {
    "input_layernorm": "norm",
    "self_attn/q_proj": "dense",
    "self_attn/k_proj": "dense",
    "self_attn/v_proj": "dense",
    "self_attn/o_proj": "dense",
    "self_attn/q_norm": "norm",
    "self_attn/k_norm": "norm",
    "post_attention_layernorm": "norm",
    "pre_feedforward_layernorm": "norm",
    "post_feedforward_layernorm": "norm",
    "mlp/gate_proj": "dense",
    "mlp/up_proj": "dense",
    "mlp/down_proj": "dense",
}


def names(model: Llama, base: str) -> Named:
    yield from module("embed_tokens", f"{base}embed_tokens", "embedding")
    for i in range(model.config.num_hidden_layers):
        for name, kind in _LAYER.items():
            original = f"{base}layers.{i}.{name.replace('/', '.')}"
            yield from module(f"layers_{i}/{name}", original, kind)
    yield from module("norm", f"{base}norm", "norm")
    yield from module("lm_head", "lm_head", "dense")
    yield from module("score", "score", "dense")


def _language_model(config: Json, tensors: Collection[str]) -> Head:
    tied = (
        read_llama(config).tie_word_embeddings
        and "model.embed_tokens.weight" in tensors
    )
    return "lm" if tied or "lm_head.weight" in tensors else None


def _tied(model: Llama) -> str | None:
    tied = model.head == "lm" and model.config.tie_word_embeddings
    return "embed_tokens/embedding" if tied else None


def _checkpoint(name: str, architecture: str) -> Checkpoint:
    return Checkpoint(
        name,
        mark=r"(model\.)?embed_tokens\.weight",
        build=lambda config, shapes: Llama(read_llama(config), head=None),
        head=("score.weight", 0),
        heads=r"(lm_head|score|qa_outputs)\..*",
        unused=r".*\.rotary_emb\.inv_freq|lm_head\.weight",
        new=r"score/.*",
        prefix="model.",
        architecture=architecture,
        other_head=_language_model,
    )


# By `model_type`: how the names of the original's classes begin.
_CHECKPOINTS = {
    name: _checkpoint(name, architecture)
    for name, architecture in {
        "llama": "Llama",
        "mistral": "Mistral",
        "qwen2": "Qwen2",
        "qwen3": "Qwen3",
        "gemma2": "Gemma2",
        "gemma3_text": "Gemma3",
    }.items()
}

LLAMA = Family(
    Llama,
    called=("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"),
    checkpoints=tuple(_CHECKPOINTS.values()),
    names={"hf": names},
    examples=text_example,
    write_config=lambda model, channels: write_llama(model.config),
    placements=Placements(
        {
            "query": "self_attn/q_proj",
            "key": "self_attn/k_proj",
            "value": "self_attn/v_proj",
            "output": "self_attn/o_proj",
            "gate": "mlp/gate_proj",
            "up": "mlp/up_proj",
            "down": "mlp/down_proj",
        },
        head="score",
        prefix="prefix",
        like="llama",
    ),
    heads=Heads(("none", "regression", "lm")),
    tokenizer="tokenizer.json",
    written_as=lambda model: _CHECKPOINTS[model.config.model_type],
    tied=_tied,
    last="norm",
)
