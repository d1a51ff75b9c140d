"""`adapter_config.json` of the torch library: which fields it may hold, and their kind.

The library writes every field of its version. Those that change what an adapter
computes are read, or must have the value that changes nothing; those that matter only
to a start or to a runtime are let pass. What is not listed must be null.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from peftjax.hub.patterns import check_patterns
from peftjax.hub.tensors import AdapterFileError
from peftjax.models.files import CheckpointError, read_json

CONFIG = "adapter_config.json"
Config = Mapping[str, Any]

# How the library uses the patterns of a configuration, which `{}` stands for.
ENDING = r"(.*\.)?({})$"
LAYERS = r"(?:.*?\.)?{}\.(?P<layer>\d+)\."


class Field(NamedTuple):
    """A field's value by default, what it may hold, in words, and as a test."""

    default: Any
    expected: str
    accepts: Callable[[Any], bool]


Fields = Mapping[str, Field]


def only(*values: Any) -> Field:
    """Return a field that holds one of some values, the first by default."""
    listed = " or ".join(json.dumps(value) for value in values)
    return Field(
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


def _patterns(value: Any, form: str = "{}") -> bool:
    if not _names(value):
        return False
    check_patterns(value, form)
    return True


def table(field: Field) -> Field:
    """Return a field that holds values of another by pattern, none by default."""

    def accepts(found: Any) -> bool:
        return (
            isinstance(found, dict)
            and all(map(field.accepts, found.values()))
            and _patterns([*found], ENDING)
        )

    return Field({}, f"{{pattern: {field.expected}}}", accepts)


# Kinds of fields that several methods have.
ANY = Field(None, "anything", lambda value: True)
FLAG = only(False, True)
NUMBER = Field(8, "a number", _number)
NAMES = Field(
    (), "module names or a regular expression", lambda v: _names(v) or _patterns([v])
)
RANK = Field(8, "an integer >= 1", lambda v: _integer(v) and v >= 1)
COUNT = Field(0, "an integer >= 0", lambda v: _integer(v) and v >= 0)
RATE = Field(0.0, "a probability below 1", lambda v: _number(v) and 0 <= v < 1)
NO = only(False)

# Fields of every method.
_ALL: dict[str, Field] = {
    "auto_mapping": ANY,
    "base_model_name_or_path": ANY,
    "exclude_modules": NAMES,
    "inference_mode": ANY,
    "layers_pattern": Field((), "patterns", lambda v: _patterns(_list(v), LAYERS)),
    "layers_to_transform": Field(
        (), "layer numbers", lambda v: all(map(_integer, _list(v)))
    ),
    "modules_to_save": Field((), "a list of module names", _names),
    "peft_type": ANY,
    "peft_version": Field("0", "a version", lambda v: isinstance(v, str)),
    "revision": ANY,
    "runtime_config": ANY,
    "target_modules": NAMES,
    "task_type": ANY,
}


def read_config(file: Path, methods: Mapping[str, Fields]) -> Config:
    """Return the fields of an adapter's configuration, defaults filled in.

    Args:
        file: the configuration.
        methods: the fields of each method, by `peft_type`.

    Raises:
        FileNotFoundError: there is no such file.
        AdapterFileError: it is no JSON object, of an unknown method, a field has a
            value that has no equal here, or an unknown field is not null.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected an adapter's configuration")
    try:
        found = read_json(file)
    except CheckpointError as error:
        raise AdapterFileError(str(error)) from error
    try:
        return complete(found, methods)
    except ValueError as error:
        raise AdapterFileError(f"{file}: {error}") from error


def complete(found: Mapping[str, Any], methods: Mapping[str, Fields]) -> Config:
    """Return a configuration with its defaults; ValueError as in `read_config`."""
    kind = found.get("peft_type")
    if not isinstance(kind, str) or kind not in methods:
        raise ValueError(
            f"peft_type: expected one of {', '.join(methods)}, found {kind!r}"
        )
    known = {**_ALL, "bias": only("none"), **methods[kind]}
    _check(known, {name: value for name, value in found.items() if value is not None})
    return {
        name: field.default if found.get(name) is None else found[name]
        for name, field in known.items()
    }


def _check(known: Fields, given: Mapping[str, Any]) -> None:
    if unknown := sorted(given.keys() - known.keys()):
        listed = ", ".join(f"{name} = {given[name]!r:.60}" for name in unknown[:8])
        raise ValueError(
            f"unknown fields that are not null: {listed}; they may change what the "
            "adapter computes. Set them to null if they do not"
        )
    for name, value in given.items():
        try:
            accepted = known[name].accepts(value)
        except ValueError as error:
            raise ValueError(
                f"{name}: expected {known[name].expected} that is quick to match, "
                f"found {error}. List the names of modules instead"
            ) from error
        if not accepted:
            raise ValueError(
                f"{name}: expected {known[name].expected}, found {value!r:.200}; "
                "anything else has no equal here"
            )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
