"""The `config.json` of Llama and its kin, both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from peftjax.models.config_json import Json, check_neutral, filled, number, wrong
from peftjax.models.llama.config import LlamaConfig
from peftjax.models.rope import Rope

FULL, LOCAL = "full_attention", "sliding_attention"
_SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")
# Read on their own: what they default to depends on the model, or the names differ.
_OWN = ("rope", "local_rope", "full_layers", "model_type", "sliding_window")
_OWN = (*_OWN, "query_pre_attn_scalar", *_SOFTCAPS)
# Where a file is silent, and where its null means none.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 8},
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
    "gemma2": {
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256.0,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
}
_DEFAULTS["gemma3_text"] = {**_DEFAULTS["gemma2"], **dict.fromkeys(_SOFTCAPS)}


def read_llama(config: Json) -> LlamaConfig:
    """Return the fields in a `config.json`.

    Raises:
        CheckpointError: a value is of another type or out of range, or asks for what
            the model here does not compute.
    """
    check_neutral(config)
    kind = config.get("model_type") or LlamaConfig.model_type
    heads = number(config, "num_attention_heads", LlamaConfig.num_attention_heads)
    width = number(config, "hidden_size", LlamaConfig.hidden_size)
    own: dict[str, Any] = {"num_key_value_heads": heads, "head_dim": width // heads}
    own |= {"model_type": kind, **_DEFAULTS.get(kind, {}), **_ropes(config, kind)}
    for name in ("query_pre_attn_scalar", *_SOFTCAPS):
        own[name] = _or_none(config, name, own.get(name))
    defaults = LlamaConfig(**own)
    if "hidden_activation" in config:
        config = {**config, "hidden_act": config["hidden_activation"]}
    found = filled(defaults, config, skip=_OWN)
    return dataclasses.replace(found, **_window(config, found))


def write_llama(config: LlamaConfig) -> dict[str, Any]:
    """Return what `read_llama` reads."""
    fields = dataclasses.asdict(config)
    full, window = fields.pop("full_layers"), fields["sliding_window"]
    rope, local = fields.pop("rope"), fields.pop("local_rope")
    fields["rope_parameters"] = _written(rope)
    if local is not None:
        both = {FULL: _written(rope), LOCAL: _written(local)}
        fields["rope_parameters"] = both
    if config.gemma:
        fields["hidden_activation"] = fields.pop("hidden_act")
        scalar = config.query_pre_attn_scalar
        if scalar is not None and scalar.is_integer():  # the original takes no 256.0
            fields["query_pre_attn_scalar"] = int(scalar)
    else:
        for name in ("query_pre_attn_scalar", *_SOFTCAPS):
            fields.pop(name)
    if config.model_type == "llama":
        fields.pop("sliding_window")
    elif config.model_type != "mistral":
        kinds = [LOCAL if near else FULL for near in config.windowed]
        fields |= {"layer_types": kinds, "use_sliding_window": window is not None}
        first = min({*range(len(kinds) + 1)} - {*full})
        fields["max_window_layers"] = first
    return fields


def _or_none(config: Json, name: str, default: Any) -> float | None:
    value = config.get(name, default)
    if value is None:
        return None
    found = number({name: value}, name, 1.0)
    if found <= 0:
        raise wrong(name, "more than 0", config)
    return found


def _window(config: Json, found: LlamaConfig) -> dict[str, Any]:
    """Return `sliding_window` and `full_layers`."""
    kind, depth = found.model_type, range(found.num_hidden_layers)
    silent = {"sliding_window": None, "full_layers": ()}
    slides = kind != "llama" and config.get("sliding_window", 4096) is not None
    if kind.startswith("qwen"):
        slides = slides and bool(config.get("use_sliding_window"))
    if not slides:
        return silent
    window = number(config, "sliding_window", 4096)
    if kind == "mistral":
        return {"sliding_window": window, "full_layers": ()}
    kinds = config.get("layer_types")
    if kinds is None:
        period = number(config, "sliding_window_pattern", 2 if kind == "gemma2" else 6)
        first = number(config, "max_window_layers", 28) if "qwen" in kind else 0
        full = [i < first if "qwen" in kind else not (i + 1) % period for i in depth]
    else:
        known = isinstance(kinds, list) and {*map(str, kinds)} <= {FULL, LOCAL}
        if not known or len(kinds) != len(depth):
            expected = f"{FULL} or {LOCAL} for each of {len(depth)} layers"
            raise wrong("layer_types", expected, config)
        full = [one == FULL for one in kinds]
    if all(full):
        return silent
    layers = tuple(i for i in depth if full[i])
    return {"sliding_window": window, "full_layers": layers}


def _ropes(config: Json, kind: str) -> dict[str, Rope | None]:
    """Read `rope_parameters`, or `rope_theta` and `rope_scaling` of older files."""
    both = (config.get("rope_parameters"), config.get("rope_scaling"))
    scaling = next((value for value in both if value not in (None, {})), {})
    if not isinstance(scaling, Mapping):
        raise wrong("rope_parameters", "an object", {"rope_parameters": scaling})
    theta = config.get("rope_theta")
    if kind != "gemma3_text":
        return {"rope": _rope({"rope_theta": theta, **scaling})}
    # Two of them; what older files stretch is the one of the layers without a window.
    base = config.get("rope_local_base_freq")
    full, local = scaling.get(FULL, scaling), scaling.get(LOCAL, {})
    for one in (full, local):
        if not isinstance(one, Mapping):
            raise wrong("rope_parameters", "objects", {"rope_parameters": scaling})
    theta = 1e6 if theta is None else theta
    full = {key: value for key, value in full.items() if key != LOCAL}
    return {
        "rope": _rope({"rope_theta": theta, **full}),
        "local_rope": _rope({"rope_theta": base, **local}),
    }


def _rope(values: dict[str, Any]) -> Rope:
    check_neutral(values)
    theta = number(values, "rope_theta", Rope.theta)
    if theta <= 0:
        raise wrong("rope_theta", "more than 0", values)
    values["rope_type"] = kind = values.get("rope_type", values.get("type", "default"))
    names = {
        "default": [],
        "linear": ["factor"],
        "llama3": [field.name for field in dataclasses.fields(Rope)[2:]],
    }.get(kind if isinstance(kind, str) else "")
    if names is None:
        raise wrong("rope_type", "default, linear or llama3", values)
    fields = {}
    for name in names:
        fields[name] = number(values, name, getattr(Rope, name))
        if values.get(name) is None or fields[name] <= 0:
            raise wrong(name, f"more than 0 for rope type {kind}", values)
    if fields.get("low_freq_factor", 0) >= fields.get("high_freq_factor", 1):
        raise wrong("high_freq_factor", "more than low_freq_factor", values)
    return Rope(theta=theta, kind=kind, **fields)  # pyright: ignore


def _written(rope: Mapping[str, Any]) -> dict[str, Any]:
    used = {"default": [], "linear": ["factor"]}.get(rope["kind"], list(rope)[2:])
    parameters = {"rope_type": rope["kind"], "rope_theta": rope["theta"]}
    return parameters | {name: rope[name] for name in used}
