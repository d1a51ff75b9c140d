"""`--config.optim.lr=1e-3`: settings by their path, read as the type they replace."""

from __future__ import annotations

import ast
from typing import Any

from ml_collections import ConfigDict

from experiments.arguments import UnknownName, known

SWITCH = {"true": True, "1": True, "false": False, "0": False}


def override(config: ConfigDict, key: str, text: str | None) -> None:
    """Replace one setting.

    Args:
        config: changed in place.
        key: its path, `"optim.lr"`.
        text: the new value; None switches a setting on.

    Raises:
        UnknownName: there is no such setting; the nearest is named.
        ValueError: the text is not of the present value's type.

    >>> config = ConfigDict({"optim": {"lr": 0.1}, "seeds": (0, 1), "measure": False})
    >>> override(config, "optim.lr", "1")
    >>> override(config, "seeds", "3,4")
    >>> override(config, "measure", None)
    >>> config.optim.lr, config.seeds, config.measure
    (1.0, (3, 4), True)
    """
    *outer, last = key.split(".")
    node: Any = config
    prefix = "--config"
    for name in outer:
        prefix = _known(name, node, prefix)
        node = node[name]
    where = _known(last, node, prefix)
    node[last] = _typed(node[last], text, where)


def _known(name: str, node: Any, prefix: str) -> str:
    """Return the path of a setting of a group."""
    if not isinstance(node, ConfigDict):
        raise UnknownName(f"unknown key {prefix}.{name}: {prefix} is one value")
    return known(f"{prefix}.{name}", [f"{prefix}.{key}" for key in node], "key")


def _typed(old: Any, text: str | None, where: str) -> Any:
    if isinstance(old, ConfigDict):
        inner = ", ".join(f"{where}.{key}" for key in old)
        raise ValueError(f"{where}: a group of settings; set one of {inner}")
    if text is None:
        if isinstance(old, bool):
            return True
        raise ValueError(f"{where}: expected {where}=VALUE")
    try:
        match old:
            case bool():
                return SWITCH[text.lower()]
            case int() | float() | str():
                return type(old)(text)
            case tuple():
                return _tuple(old, text)
    except (KeyError, OverflowError, SyntaxError, TypeError, ValueError):
        kind = type(old).__name__
        raise ValueError(f"{where}={text!r}: expected {kind}, as {old!r} is") from None
    raise ValueError(f"{where}: {old!r} cannot be set on the command line")


def _tuple(old: tuple, text: str) -> tuple:
    """Return `1,2`, `(1, 2)` or `a,b` as a tuple of what the present one holds."""
    if not all(isinstance(item, bool | int | float | str) for item in old):
        raise ValueError
    text = text.strip()
    if text[:1] in ("(", "["):
        found = ast.literal_eval(text)
    else:
        found = [part.strip() for part in text.split(",") if part.strip()]
    kind = type(old[0]) if old else str
    return tuple(kind(item) for item in found)
