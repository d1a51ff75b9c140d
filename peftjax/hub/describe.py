"""Methods as JSON and back, without evaluating anything that was read."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

import msgspec

from peftjax.core.method import Method
from peftjax.methods import ALL


class Described(msgspec.Struct, forbid_unknown_fields=True):
    """A method as JSON has it: the name of its class, and its settings."""

    name: str
    settings: dict[str, Any]


def describe(method: Method) -> Described:
    """Return name and settings of a method, ready for JSON.

    Raises:
        TypeError: a setting is neither a number, string, bool, None, tuple nor method.

    >>> from peftjax.methods.lora import LoRA
    >>> describe(LoRA(rank=2, alpha=3.0)).settings["alpha"]
    3.0
    """
    owner = type(method).__name__
    settings = {
        field.name: _encode(f"{owner}.{field.name}", getattr(method, field.name))
        for field in dataclasses.fields(method)
    }
    return Described(owner, settings)


def restore(document: Any, methods: Iterable[type[Method]] = ()) -> Method:
    """Build the method that `describe` described.

    Args:
        document: what `describe` returned, perhaps read back from JSON.
        methods: classes of the caller's own, looked up before the library's.

    Raises:
        ValueError: the document is malformed, names an unknown class or setting, or a
            value does not fit the method.
    """
    methods = tuple(methods)
    known = {cls.__name__: cls for cls in (*ALL, *methods)}
    try:
        document = msgspec.convert(document, Described)
    except msgspec.ValidationError as error:
        raise ValueError(f"expected a method's name and settings: {error}") from error
    name, settings = document.name, document.settings
    if name not in known:
        near = difflib.get_close_matches(name, known, 3) or sorted(known)
        raise ValueError(
            f"unknown method {name!r:.80}: expected one of {', '.join(near)}; pass the "
            "class in `methods` if it is your own"
        )
    fields = {field.name for field in dataclasses.fields(known[name]) if field.init}
    if unknown := sorted(set(settings) - fields):
        raise ValueError(
            f"{name} has no setting {unknown[0]!r:.80}: expected {sorted(fields)}"
        )
    values = {key: _decode(value, methods) for key, value in settings.items()}
    try:
        return known[name](**values)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error


def _encode(where: str, value: Any) -> Any:
    if isinstance(value, Method):
        return msgspec.to_builtins(describe(value))
    if isinstance(value, tuple | list):
        return [_encode(where, item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{where}: expected a number, string, bool, None, tuple or method, found "
        f"{type(value).__name__}; an adapter file cannot hold it"
    )


def _decode(value: Any, methods: Iterable[type[Method]]) -> Any:
    if isinstance(value, dict):
        return restore(value, methods)
    if isinstance(value, list):
        return tuple(_decode(item, methods) for item in value)
    return value
