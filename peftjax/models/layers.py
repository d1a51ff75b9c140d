"""What model families share: a stack of layers, its two layouts, dropout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def apply_layers(
    layer: type[nn.Module],
    fields: Mapping[str, Any],
    depth: int,
    x: Any,
    per_layer: Any = None,
    *shared: Any,
    name: str = "blocks",
    scan: bool = False,
    remat: bool = False,
) -> Any:
    """Apply `depth` layers in sequence, from within the parent's `nn.compact` method.

    Args:
        layer: a module with `__call__(x, per_layer_i, *shared) -> (x, None)`.
        fields: its constructor arguments, the same for all layers.
        depth: how many layers.
        x: what the layers pass on.
        per_layer: a tree of arrays with a leading axis of size `depth`, or None.
        *shared: further arguments, the same for all layers.
        name: parameters lie under `{name}_0`, `{name}_1`, ...; with `scan` under
            `{name}` with a leading layer axis (`stack_layers` converts).
        scan: one compiled layer in a loop instead of `depth` copies.
        remat: recompute a layer's activations in the backward pass.
    """
    if remat:
        # Inside a loop XLA cannot merge the recomputation with the forward pass.
        layer = nn.remat(layer, prevent_cse=not scan)
    if not scan:
        for i in range(depth):
            own = jax.tree.map(lambda leaf, i=i: leaf[i], per_layer)
            x, _ = layer(**fields, name=f"{name}_{i}")(x, own, *shared)  # pyright: ignore
            # Else XLA sums the gradient of the residual stream anew in every layer.
            x = jax.lax.optimization_barrier(x)
        return x
    scanned = nn.scan(
        layer,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, *(nn.broadcast,) * len(shared)),  # pyright: ignore
        length=depth,
    )
    return scanned(**fields, name=name)(x, per_layer, *shared)[0]


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Drop entries of x with probability `rate`, and rescale the others."""
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def drop_path(x: jax.Array, rate: Any, key: jax.Array | None) -> jax.Array:
    """Drop a residual branch for whole examples (stochastic depth, arXiv 1603.09382).

    Kept examples are divided by `1 - rate`, so that the expectation is x.

    Args:
        x: `[examples, ...]`, the output of a residual branch.
        rate: probability of dropping an example, below 1; a number or a scalar array.
        key: a PRNG key; None means nothing is dropped.

    Returns:
        An array of the shape and dtype of x.

    >>> drop_path(jnp.ones((2, 3)), 0.5, None).sum()
    Array(6., dtype=float32)
    """
    if key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, (len(x),) + (1,) * (x.ndim - 1))
    return x * (keep / (1.0 - rate)).astype(x.dtype)


def stack_layers(tree: Mapping[str, Any], name: str = "blocks") -> dict[str, Any]:
    """Convert the layers `{name}_0`, `{name}_1`, ... into the layout of scanned layers.

    Pure; under `jax.eval_shape` it converts abstract trees. Keys that are whole paths
    (`blocks_0/attn/qkv/kernel`) are converted as well, so adapters move between the two
    layouts like parameters.

    Args:
        tree: nested mappings with the layers at any depth.
        name: the layers' common name.

    Returns:
        Nested dicts with `{name}` in place of the numbered layers; its leaves have one
        more axis, the first, of the size of the number of layers.

    Raises:
        ValueError: no layer is found, a number is missing, or layers differ.

    >>> layers = {"blocks_0": {"bias": jnp.zeros(1)}, "blocks_1": {"bias": jnp.ones(1)}}
    >>> stack_layers(layers)
    {'blocks': {'bias': Array([[0.],
           [1.]], dtype=float32)}}
    """
    pattern = re.compile(rf"((?:.*/)?{re.escape(name)})_(\d+)((?:/.*)?)")

    def convert(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        out, groups = {}, {}
        for key, value in node.items():
            if match := pattern.fullmatch(key):
                group = groups.setdefault(match[1] + match[3], {})
                group[int(match[2])] = value
            else:
                out[key] = convert(value)
        return _joined(out, {key: _stack(key, group) for key, group in groups.items()})

    return _changed(tree, convert(tree), f"{name}_0, {name}_1, ...", "stack_layers")


def unstack_layers(tree: Mapping[str, Any], name: str = "blocks") -> dict[str, Any]:
    """Convert scanned layers under `{name}` into `{name}_0`, `{name}_1`, ...

    The inverse of `stack_layers`, for the same kinds of tree.

    Raises:
        ValueError: no layer is found, or the leaves differ in their leading axis.

    >>> unstack_layers({"blocks": {"bias": jnp.ones((2, 1))}})
    {'blocks_0': {'bias': Array([1.], dtype=float32)},
     'blocks_1': {'bias': Array([1.], dtype=float32)}}
    """
    pattern = re.compile(rf"((?:.*/)?{re.escape(name)})((?:/.*)?)")

    def convert(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        out, layers = {}, {}
        for key, value in node.items():
            if match := pattern.fullmatch(key):
                for i in range(_depth(key, value)):
                    own = jax.tree.map(lambda leaf, i=i: leaf[i], value)
                    layers[f"{match[1]}_{i}{match[2]}"] = own
            else:
                out[key] = convert(value)
        return _joined(out, layers)

    return _changed(tree, convert(tree), name, "unstack_layers")


def _stack(key: str, group: Mapping[int, Any]) -> Any:
    layers = [group[i] for i in sorted(group)]
    if sorted(group) != list(range(len(group))):
        raise ValueError(
            f"{key}: expected layers 0 to {max(group)}, found {sorted(group)}; "
            "a stack needs every layer once"
        )
    shapes = [jax.tree.map(jnp.shape, layer) for layer in layers]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"{key}: expected layers of equal names and shapes, found layer 0 with "
                f"{shapes[0]} and layer {i} with {shape}; leave them unrolled"
            )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def _depth(key: str, value: Any) -> int:
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(value)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            f"{key}: expected every leaf to have the same leading layer axis, found "
            f"sizes {sorted(sizes)}; are these parameters of scanned layers?"
        )
    return sizes.pop()[0]


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    if common := sorted(first.keys() & second.keys()):
        raise ValueError(
            f"{', '.join(common)}: the tree holds both layouts of these layers; "
            "remove one of them"
        )
    return {**first, **second}


def _changed(before: Any, after: Any, expected: str, function: str) -> Any:
    if jax.tree.structure(before) == jax.tree.structure(after):
        keys: Sequence[str] = sorted(map(str, before))
        raise ValueError(
            f"{function}: expected layers named {expected}, found {', '.join(keys)}; "
            "give the layers' name, or leave the tree as it is"
        )
    return after
