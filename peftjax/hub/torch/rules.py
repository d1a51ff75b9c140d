"""From adapted parameters, one by one, to rules and adapters for `adapt`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.method import Method
from peftjax.hub.tensors import AdapterFileError
from peftjax.hub.torch.modules import Leaf

Adapters = dict[str, dict[str, jax.Array]]
Found = dict[Leaf, tuple[Method, dict[str, np.ndarray]]]

_NUMBER = re.compile(r"_(\d+)/")


def collect(
    found: Found, params: Mapping[str, Any]
) -> tuple[dict[str, Method], Adapters]:
    """Return rules and adapters; layers that lie in one stack here are stacked.

    Raises:
        AdapterFileError: the layers of a stack are not all adapted alike.
    """
    layers: dict[str, dict[int | None, tuple[Method, dict[str, np.ndarray]]]] = {}
    for leaf, entry in found.items():
        layers.setdefault(leaf.path, {})[leaf.number] = entry
    methods, adapters = {}, {}
    for path, leaf in params.items():
        if path not in layers:
            continue
        group = layers[path]
        if None not in group:
            _check_alike(path, group, leaf.shape[0])
        entries = [group[index] for index in sorted(group, key=lambda i: i or 0)]
        methods[path] = entries[0][0]
        adapters[path] = {
            name: jnp.asarray(
                entries[0][1][name]
                if None in group
                else np.stack([p[name] for _, p in entries])
            )
            for name in entries[0][1]
        }
    return to_rules(methods, params), adapters


def _check_alike(path: str, group: Mapping[int | None, Any], depth: int) -> None:
    method = group[min(group, key=lambda i: i or 0)][0]
    for i in range(depth):
        other = group[i][0] if i in group else None
        if other != method:
            raise AdapterFileError(
                f"{path}: layer {i} has {other or 'no adapter'}, others {method}; a "
                "stack of scanned layers holds one method. Load the model with "
                "scan_layers=False"
            )


def to_rules(
    methods: Mapping[str, Method], paths: Mapping[str, Any]
) -> dict[str, Method]:
    r"""Return rules that give every path its method, and other paths none.

    >>> from peftjax.methods.lora import LoRA
    >>> small, paths = LoRA(2, alpha=4.0), ["layers_0/up/kernel", "layers_1/up/kernel"]
    >>> list(to_rules(dict.fromkeys(paths, small), dict.fromkeys(paths)))
    ['layers_\\d+/up/kernel']
    """
    numbers: dict[tuple[str, Method], list[str]] = {}
    for path, method in methods.items():
        key = (_NUMBER.sub("_#/", path, count=1), method)
        numbers.setdefault(key, []).extend(_NUMBER.findall(path)[:1])
    every = [_NUMBER.sub("_#/", path, count=1) for path in paths]
    rules = {}
    for (place, method), own in numbers.items():
        some = own[0] if len(own) == 1 else f"({'|'.join(own)})"
        which = r"\d+" if len(own) == every.count(place) else some
        rules[place.replace("#", which)] = method
    return rules
