"""Leaves of `Full` in the torch library's terms: whole modules, or trained biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from peftjax.hub.torch.modules import Leaf, Modules, lineage


def describe_full(
    full: Mapping[Leaf, np.ndarray], modules: Modules, adapted: set[str], kind: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what a configuration says of them, and the tensors.

    Args:
        full: values in torch's layout.
        modules: of the model.
        adapted: the modules that carry an adapter.
        kind: the configuration's `peft_type`.

    Raises:
        ValueError: the library has no words for just these leaves.
    """
    by_module: dict[str, list[Leaf]] = {}
    for leaf in modules.leaves.values():
        by_module.setdefault(leaf.module, []).append(leaf)
    whole = {
        module
        for module, leaves in by_module.items()
        if all(leaf.name and leaf in full for leaf in leaves)
    }
    lone = [leaf for leaf in full if leaf.module not in whole]
    names = sorted({_topmost(module, whole, by_module) for module in whole})
    fields: dict[str, Any] = {"modules_to_save": names or None}
    if lone:
        fields["bias"] = _bias_mode(lone, whole, modules, adapted, kind)
    held = {leaf.module for leaf in modules.named(fields)} if names else set()
    if held != whole:
        raise ValueError(
            f"modules_to_save: the torch library compares ends of names, and {names} "
            f"would also mean {sorted(held - whole)[:5]}"
        )
    tensors = {}
    for leaf, value in full.items():
        infix = ".base_layer" if leaf.module in adapted else ""
        tensors[f"{leaf.module}{infix}.{leaf.name}"] = value
    return fields, tensors


def _topmost(module: str, whole: set[str], by_module: Mapping[str, list[Leaf]]) -> str:
    """Return the highest parent all of whose modules are saved."""
    for parent in lineage(module):
        inside = [m for m in by_module if m == parent or m.startswith(f"{parent}.")]
        if whole.issuperset(inside):
            return parent
    return module


def _bias_mode(
    lone: list[Leaf],
    whole: set[str],
    modules: Modules,
    adapted: set[str],
    kind: str,
) -> str:
    biases = {leaf for leaf in modules.leaves.values() if leaf.name == "bias"}
    if {leaf for leaf in biases if leaf.module in adapted} == {*lone}:
        return f"{kind.lower()}_only"
    if {leaf for leaf in biases if leaf.module not in whole} == {*lone}:
        return "all"
    raise ValueError(
        f"{lone[0].path}: Full() here has no equal in the torch library, which trains "
        "whole modules, the biases of all adapted modules, or all biases; found "
        f"{len(lone)} leaves that make up none of these"
    )
