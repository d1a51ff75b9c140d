"""What the configurations of language models share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import defaults
from peftjax import presets

LLAMA2_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
BUCKETS = (64, 128, 192, 256, 384, 512, 768, 1024)


def rules(
    method: Any, parts: Any = ("query", "value"), family: str = "llama"
) -> tuple[Any, ...]:
    """Return the rules of a method on some parts of every layer."""
    return tuple(presets.rules(family, method, parts=parts).items())


def llm(
    *, model: Mapping[str, Any], data: Mapping[str, Any], **settings: Any
) -> ConfigDict:
    """Return the configuration of one run over the defaults of language models.

    Args:
        model: of the module: `settings` of its `LlamaConfig`, or with
            `model_type="t5"` of its `T5Config`, `dtype`, `remat`.
        data: `files` of each split below `paths.data`, `template`, `max_length`, ...
        **settings: all others.
    """
    return defaults.run(
        family="llm",
        model={"scan_layers": True, "remat": False, "dtype": "float32", **model},
        data={
            "kind": "instructions",
            "columns": {},
            "longer": "cut",  # or "drop"
            "pack": 0,  # tokens of a packed row; 0 pads to buckets
            "buckets": BUCKETS,
            "held_out": 0.01,  # no table has it: of what the loss is reported
            "train_examples": 0,
            "validation_examples": 0,
            "test_examples": 0,
            **data,
        },
        **settings,
    )
