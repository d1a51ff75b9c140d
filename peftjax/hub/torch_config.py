"""`adapter_config.json` of the torch library: which fields it may hold, and their kind.

The library writes every field of its version. Those that change what an adapter
computes are read, or must have the value that changes nothing; those that matter only
to a start or to a runtime are let pass. What is not listed must be null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from peftjax.hub.tensors import AdapterFileError

CONFIG = "adapter_config.json"
Config = Mapping[str, Any]


class _Field(NamedTuple):
    default: Any
    expected: str
    accepts: Callable[[Any], bool]


def _only(*values: Any) -> _Field:
    """Return a field that holds one of some values, the first by default."""
    listed = " or ".join(json.dumps(value) for value in values)
    return _Field(
        values[0],
        listed,
        lambda found: any(type(found) is type(v) and found == v for v in values),
    )


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return (_integer(value) or isinstance(value, float)) and abs(value) < 1e30


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except (re.error, OverflowError, RecursionError):
        return False


def _table(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict)
        and all(_pattern(key) and accepts(item) for key, item in value.items())
    )


_ANY = _Field(None, "anything", lambda value: True)
_FLAG = _only(False, True)
_NAMES = _Field(
    (), "module names or a regular expression", lambda v: _names(v) or _pattern(v)
)
_RANK = _Field(8, "an integer >= 1", lambda v: _integer(v) and v >= 1)
_COUNT = _Field(0, "an integer >= 0", lambda v: _integer(v) and v >= 0)
_RATE = _Field(0.0, "a probability below 1", lambda v: _number(v) and 0 <= v < 1)
_NO = _only(False)

_ALL: dict[str, _Field] = {
    "auto_mapping": _ANY,
    "base_model_name_or_path": _ANY,
    "exclude_modules": _NAMES,
    "inference_mode": _ANY,
    "layers_pattern": _Field((), "patterns", lambda v: all(map(_pattern, _list(v)))),
    "layers_to_transform": _Field(
        (), "layer numbers", lambda v: all(map(_integer, _list(v)))
    ),
    "modules_to_save": _Field((), "a list of module names", _names),
    "peft_type": _ANY,
    "peft_version": _Field("0", "a version", lambda v: isinstance(v, str)),
    "revision": _ANY,
    "target_modules": _NAMES,
    "task_type": _ANY,
}
# Starts that leave the frozen weight as it was; the others subtract from it.
_LORA_STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica")

_FIELDS: dict[str, dict[str, _Field]] = {
    "LORA": {
        "alpha_pattern": _Field({}, "{pattern: number}", _table(_number)),
        "bias": _only("none", "all", "lora_only"),
        "ensure_weight_tying": _NO,
        "eva_config": _ANY,
        "fan_in_fan_out": _NO,
        "init_lora_weights": _only(*_LORA_STARTS),
        "loftq_config": _only({}),
        "lora_alpha": _Field(8, "a number", _number),
        "lora_bias": _NO,
        "lora_dropout": _RATE,
        "megatron_core": _ANY,
        "qalora_group_size": _ANY,
        "r": _RANK,
        "rank_pattern": _Field({}, "{pattern: integer >= 1}", _table(_RANK.accepts)),
        "use_dora": _FLAG,
        "use_qalora": _NO,
        "use_rslora": _FLAG,
    },
    "IA3": {
        "fan_in_fan_out": _NO,
        "feedforward_modules": _NAMES,
        "init_ia3_weights": _ANY,
    },
    "OFT": {
        "bias": _only("none", "all", "oft_only"),
        "block_share": _FLAG,
        "coft": _NO,
        "eps": _ANY,
        "fan_in_fan_out": _NO,
        "init_weights": _ANY,
        "module_dropout": _Field(0, "0, as OFT here", lambda v: _number(v) and v == 0),
        "num_cayley_neumann_terms": _only(5),
        "oft_block_size": _COUNT,
        "r": _COUNT,
        "use_cayley_neumann": _only(True, False),
    },
    "HRA": {
        "apply_GS": _FLAG,
        "bias": _only("none", "all", "hra_only"),
        "init_weights": _ANY,
        "r": _RANK,
    },
    "GLORA": {
        "bias": _only("none", "all", "glora_only"),
        "config_A_B": _only("lora", "vector", "constant", "none"),
        "config_C": _only("lora", "vector", "none"),
        "config_D_E": _only("constant", "vector", "none"),
        "init_weights": _ANY,
        "r": _RANK,
    },
}


def read_config(file: Path) -> Config:
    """Return the fields of an adapter's configuration, defaults filled in.

    Raises:
        FileNotFoundError: there is no such file.
        AdapterFileError: it is no JSON object, of an unknown method, a field has a
            value that has no equal here, or an unknown field is not null.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected an adapter's configuration")
    try:
        found = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterFileError(
            f"{file}: truncated or not JSON ({error}); copy it again"
        ) from error
    if not isinstance(found, dict):
        raise AdapterFileError(
            f"{file}: expected a JSON object, found {type(found).__name__}"
        )
    try:
        return complete(found)
    except ValueError as error:
        raise AdapterFileError(f"{file}: {error}") from error


def complete(found: Mapping[str, Any]) -> Config:
    """Return a configuration with its defaults; ValueError as in `read_config`."""
    kind = found.get("peft_type")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise ValueError(
            f"peft_type: expected one of {', '.join(_FIELDS)}, found {kind!r}"
        )
    known = {**_ALL, "bias": _only("none"), **_FIELDS[kind]}
    _check(known, {name: value for name, value in found.items() if value is not None})
    return {
        name: field.default if found.get(name) is None else found[name]
        for name, field in known.items()
    }


def _check(known: Mapping[str, _Field], given: Mapping[str, Any]) -> None:
    if unknown := sorted(given.keys() - known.keys()):
        listed = ", ".join(f"{name} = {given[name]!r:.60}" for name in unknown[:8])
        raise ValueError(
            f"unknown fields that are not null: {listed}; they may change what the "
            "adapter computes. Set them to null if they do not"
        )
    for name, value in given.items():
        if not known[name].accepts(value):
            raise ValueError(
                f"{name}: expected {known[name].expected}, found {value!r:.200}; "
                "anything else has no equal here"
            )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
