"""Values of a `config.json`, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from peftjax.models.activations import activation
from peftjax.models.files import CheckpointError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Json = Mapping[str, Any]
T = TypeVar("T", bound="DataclassInstance")

# What the models here do not compute: the values with which they are the original.
_NEUTRAL: dict[str, Any] = {
    "add_cross_attention": False,
    "is_decoder": False,
    "partial_rotary_factor": 1.0,
    "position_embedding_type": "absolute",
    "qkv_bias": True,
    "quantization_config": None,
    "use_bidirectional_attention": False,
}


def check_neutral(config: Json) -> None:
    """Raise CheckpointError where a model asks for what those here do not compute."""
    for name, neutral in _NEUTRAL.items():
        if config.get(name, neutral) not in (neutral, None):
            raise wrong(name, f"{neutral!r}, all that the models here compute", config)


def number(config: Json, name: str, default: Any) -> Any:
    """Return a number of the default's type, or the default where there is none.

    Raises:
        CheckpointError: it is of another type, a size is not positive, a rate not below
            one, or it is not finite.
    """
    value = config.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(name, "a number", config)
    if isinstance(default, int):
        least = 0 if name.endswith("token_id") else 1
        if not isinstance(value, int) or not least <= value < 2**31:
            raise wrong(name, f"an integer from {least}", config)
        return value
    most = 1.0 if "dropout" in name else 1e12
    if not 0 <= value < most:
        raise wrong(name, f"at least 0 and less than {most:g}", config)
    return float(value)


def wrong(name: str, expected: str, config: Json) -> CheckpointError:
    """Return the error for a value of `config.json`."""
    found = config.get(name)
    return CheckpointError(f"config.json: {name}: expected {expected}, found {found!r}")


def filled(defaults: T, config: Json, *, skip: Collection[str] = ()) -> T:
    """Return the defaults with what `config.json` says of their fields but some.

    Raises:
        CheckpointError: as `number`; or an activation is not known, or a flag no flag.
    """
    values = {}
    for field in dataclasses.fields(defaults):
        name, value = field.name, config.get(field.name)
        default = getattr(defaults, name)
        if value is None or name in skip:
            continue
        if name.endswith("hidden_act"):
            try:
                activation(value)
            except (TypeError, ValueError) as error:
                raise wrong(name, str(error), config) from error
        elif isinstance(default, bool):
            if not isinstance(value, bool):
                raise wrong(name, "true or false", config)
        else:
            value = number(config, name, 0.0 if default is None else default)
        values[name] = value
    return dataclasses.replace(defaults, **values)


def converted(kind: type[T], config: Json, only: Json) -> T:
    """Return a dataclass of what `config.json` says of its fields, by their types.

    Args:
        kind: the dataclass.
        config: what the file says.
        only: of what is no field, what the model here computes.

    Raises:
        CheckpointError: a value does not fit, or asks for what is not computed here.
    """
    for name, value in only.items():
        if config.get(name, value) != value:
            raise wrong(name, f"{value!r}, all that the model here computes", config)
    try:
        return msgspec.convert(config, kind)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"config.json: {error}") from error
