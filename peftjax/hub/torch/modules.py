"""Modules of the torch library's model: where they lie here, which a config means.

Names and layouts are those of the model's `Family`, which the model loader reads too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from peftjax.core.method import Kind, Layer
from peftjax.hub.tensors import AdapterFileError
from peftjax.hub.torch.config import ENDING, LAYERS, Config
from peftjax.models.families import family_of
from peftjax.models.family import Model
from peftjax.models.leaves import unrolled
from peftjax.models.names import Layout

_HEADS = ("classifier", "head", "lm_head", "score")
_KINDS: dict[str, Kind] = {"dense": "dense", "conv": "conv", "embedding": "embedding"}


class Leaf(NamedTuple):
    """A parameter of the torch model and where it lies in ours.

    Attributes:
        module: torch's module, `"bert.encoder.layer.0.intermediate.dense"`.
        name: the parameter's name in it, `"weight"` or `"bias"`; `""` for a bare one.
        path: of our leaf, which may be a stack of layers.
        number: of the layer in the stack, or None.
        shape: of ours, without the stack.
        order: torch's axes in our order.
        kind: what the module is: `"dense"`, `"conv"`, `"embedding"`, or `"other"`.
    """

    module: str
    name: str
    path: str
    number: int | None
    shape: tuple[int, ...]
    order: tuple[int, ...]
    kind: Kind

    @property
    def layer(self) -> Layer:
        *rows, d_out = self.shape
        spatial = self.shape[:-2] if self.kind == "conv" else ()
        return Layer(prod(rows), d_out, self.kind, path=self.path, spatial=spatial)

    def to_ours(self, value: np.ndarray) -> np.ndarray:
        """Return torch's value of this parameter in our layout."""
        return value.transpose(self.order)

    def to_torch(self, value: np.ndarray) -> np.ndarray:
        """Return our value in torch's layout."""
        return value.transpose(np.argsort(self.order))


class Modules:
    """The parameters of a model under torch's names.

    Attributes:
        leaves: by `module.name`.
        fused: parameters of torch's that are one part of ours, or of which ours is one
            part: name to our path.
    """

    def __init__(
        self,
        model: Model,
        shapes: Mapping[str, tuple[int, ...]],
        layout: Layout,
        prefix: bool,
    ) -> None:
        self.leaves: dict[str, Leaf] = {}
        self.fused: dict[str, str] = {}
        where = family_of(model).sources(model, layout, prefix=prefix)
        for path, shape in shapes.items():
            paths = unrolled(path, shape)
            for i, one in enumerate(paths):
                if one not in where:
                    raise ValueError(
                        f"{path}: not a parameter of {type(model).__name__}"
                    )
                source = where[one]
                tensor, *more = source.tensors
                if more or source.part != (0, 1):
                    self.fused.update(dict.fromkeys(source.tensors, path))
                    continue
                apart = (tensor, "", "") if source.bare else tensor.rpartition(".")
                module, _, name = apart
                number, own = (None, shape) if paths == [path] else (i, shape[1:])
                self.leaves[tensor] = Leaf(
                    module,
                    name,
                    path,
                    number,
                    own,
                    source.order,
                    _KINDS.get(source.kind, "other"),
                )

    def at(self, path: str) -> list[Leaf]:
        """Return the parameters of torch's that lie in one of our leaves, in order.

        Raises:
            ValueError: there are none.
        """
        found = [leaf for leaf in self.leaves.values() if leaf.path == path]
        if not found:
            fused = path in self.fused.values()
            raise ValueError(
                f"{path}: no parameter of its own in the torch model"
                + fused * ", where q, k and v are fused otherwise; see fused_qkv"
            )
        return found

    @property
    def weights(self) -> dict[str, Leaf]:
        """The weights that an adapter may sit on, by module."""
        return {
            leaf.module: leaf
            for leaf in self.leaves.values()
            if leaf.name == "weight" and leaf.kind != "other"
        }

    def named(self, config: Config) -> list[Leaf]:
        """Return the leaves that `modules_to_save` names, themselves or by a parent."""
        # The library compares ends of names, without regard to dots.
        ends = tuple(config["modules_to_save"])
        return [
            leaf
            for leaf in self.leaves.values()
            if leaf.name and any(part.endswith(ends) for part in lineage(leaf.module))
        ]

    def targeted(self, config: Config) -> dict[str, Leaf]:
        """Return the weights that a configuration adapts, by module.

        Raises:
            AdapterFileError: there are none, or one is fused with others here.
        """
        for tensor, path in self.fused.items():
            module, _, name = tensor.rpartition(".")
            if name == "weight" and is_target(config, module, "dense"):
                raise AdapterFileError(
                    f"target_modules: {module} is adapted there, but is only a part of "
                    f"{path} here, or the reverse; load the model with the other "
                    "fused_qkv"
                )
        found = {
            module: leaf
            for module, leaf in self.weights.items()
            if is_target(config, module, leaf.kind)
        }
        if not found:
            targets = config["target_modules"] or None
            raise AdapterFileError(
                f"target_modules {targets!r:.300}: found no such module in this model; "
                f"its modules are {', '.join([*self.weights][:8])}, ..."
            )
        return found


def is_target(config: Config, module: str, kind: str = "dense") -> bool:
    """Whether a configuration means this module, by the torch library's rules.

    A list holds whole names or their last parts, a string is a regular expression for
    the whole name. `layers_to_transform` narrows last parts alone, to layers whose
    number is the first in the name.
    """
    targets, excluded = config["target_modules"], config["exclude_modules"]
    if excluded and _listed(excluded, module):
        return False
    if any(f".{name}." in f".{module}." for name in config["modules_to_save"]):
        return False
    if isinstance(targets, str):
        if targets.lower() == "all-linear":
            return kind == "dense" and module.split(".")[0] not in _HEADS
        return re.fullmatch(targets, module) is not None
    return module in targets or (
        _listed(targets, module) and _in_layers(config, module)
    )


def pattern_value(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of a module's name."""
    for pattern, value in patterns.items():
        if re.match(ENDING.replace("{}", pattern), module):
            return value
    return default


def is_feedforward(names: str | Sequence[str], module: str) -> bool:
    """Whether IA3's `feedforward_modules` mean this module."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return module.endswith(tuple(names))


def _listed(names: str | Sequence[str], module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _in_layers(config: Config, module: str) -> bool:
    layers, lists = config["layers_to_transform"], config["layers_pattern"]
    layers = [layers] if isinstance(layers, int) else layers
    lists = [lists] if isinstance(lists, str) else lists
    lists = [name for name in lists if name]
    starts = [LAYERS.replace("{}", name) for name in lists] or [
        r".*?\.[^.]*\.(?P<layer>\d+)\."
    ]
    found = (re.match(start, module) for start in starts)
    match = next(filter(None, found), None)
    number = match and match["layer"]
    return not layers or (number is not None and int(number) in layers)


def lineage(module: str) -> list[str]:
    """Return a module's name and those of the modules that hold it."""
    parts = module.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
