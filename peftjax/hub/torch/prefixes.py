"""Prefixes in the torch library's files: one tensor, of no module.

A row of `prompt_embeddings` holds key and value of every layer, as ours does. A network
that makes the prefix is not in the file; what it makes is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from peftjax.hub.tensors import AdapterFileError
from peftjax.hub.torch.config import ANY, COUNT, Config, Field, only
from peftjax.methods.prefix_tuning import PrefixTuning
from peftjax.models.family import Model
from peftjax.models.files import Tensor, finite

TYPE, RULE = "PREFIX_TUNING", "prefix:output"
ROWS = "prompt_embeddings"
START = "base_model."  # before the names of what is trained beside it
NAMES = re.compile(rf"{ROWS}$|{re.escape(START)}")
FIELDS: Mapping[str, Field] = {
    "encoder_hidden_size": ANY,
    "init_weights": ANY,
    "num_attention_heads": COUNT,
    "num_layers": COUNT,
    "num_transformer_submodules": only(1),
    "num_virtual_tokens": COUNT,
    "prefix_projection": only(False, True),
    "token_dim": COUNT,
}


def taken(
    config: Config, tensors: dict[str, Tensor], model: Model
) -> tuple[dict[str, PrefixTuning], dict[str, dict[str, Any]]]:
    """Return rule and adapter of a prefix, whose tensor is taken out of `tensors`.

    Raises:
        AdapterFileError: the model has no place for it, or another one.
    """
    width = _width(model)
    shape = config["num_virtual_tokens"], width
    found = tensors.pop(ROWS, None)
    kind = "" if found is None else np.dtype(found.dtype).name
    if found is None or found.shape != shape or "float" not in kind:
        shown = "none" if found is None else f"{kind}{list(found.shape)}"
        raise AdapterFileError(
            f"{ROWS}: expected a floating tensor {list(shape)}, a key and a value of "
            f"every layer of this model in a row, found {shown}; is it of a prefix "
            "trained on another model?"
        )
    if not finite(value := found.read().astype(np.float32)):
        raise AdapterFileError(f"{ROWS}: holds NaN or infinity")
    return {RULE: PrefixTuning(len(value))}, {RULE: {"prefix": jnp.asarray(value)}}


def written(
    model: Model, method: PrefixTuning, p: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the fields of a configuration and the tensor of a prefix."""
    rows, config = np.asarray(method.edit(p, None, None)), vars(model)["config"]
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    layers = config.num_hidden_layers
    fields = {
        "num_attention_heads": heads,
        "num_layers": layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": method.length,
        "prefix_projection": False,
        "token_dim": _width(model) // (2 * layers),
    }
    return fields, {ROWS: rows}


def _width(model: Model) -> int:
    width = getattr(model, "prefix_width", None)
    if width is None:
        raise AdapterFileError(
            f"{TYPE}: a {type(model).__name__} has no place of a prefix here; expected "
            "a Llama or a Bert"
        )
    return width
