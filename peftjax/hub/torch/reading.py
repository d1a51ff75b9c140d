"""The tensors of an adapter of the torch library, taken out one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.method import Layer, Method
from peftjax.core.paths import nearest
from peftjax.hub.tensors import AdapterFileError
from peftjax.hub.torch import prefixes
from peftjax.hub.torch.codec import Codec, Entry
from peftjax.hub.torch.codec import Tensor as Lying
from peftjax.hub.torch.codecs import CODECS, READERS, codec_of
from peftjax.hub.torch.config import Config
from peftjax.hub.torch.modules import Leaf, Modules
from peftjax.hub.torch.rules import Found
from peftjax.methods.full import Full
from peftjax.models.families import family_of
from peftjax.models.family import Model
from peftjax.models.files import Tensor, finite

SHARED = "base_model."  # before the names of what all modules share
OUTPUT = "lm_head"  # the output layer, where it is a table's copy too
_COPIES = re.compile(r"\.(original_module|modules_to_save)(?=\.)")


class Reading:
    """A file being read: tensors are taken out of `tensors` until none is left."""

    def __init__(
        self,
        config: Config,
        tensors: dict[str, Tensor],
        modules: Modules,
        params: Mapping[str, Any],
    ) -> None:
        self.config, self.tensors, self.modules = config, tensors, modules
        self.params = params
        targeted = config["peft_type"] != prefixes.TYPE
        self.targets = modules.targeted(config) if targeted else {}
        self.shared: dict[str, np.ndarray] = {}

    def adapted(self) -> Found:
        """Return method and arrays of every adapted weight."""
        reader = READERS[self.config["peft_type"]]
        found: Found = {}
        above = {
            name.removeprefix(SHARED): tensor.shape
            for name, tensor in self.tensors.items()
            if name.startswith(SHARED)
        }
        for module, leaf in self.targets.items():
            if leaf.kind not in reader.kinds:
                raise AdapterFileError(
                    f"{module}: {reader.peft_type} on a layer of kind {leaf.kind} has "
                    f"no equal here; expected {' or '.join(reader.kinds)}"
                )
            start, bias = f"{module}.", f"{module}.bias" in self.modules.leaves
            shapes = {
                name.removeprefix(start): tensor.shape
                for name, tensor in self.tensors.items()
                if name.startswith(start)
            }
            method = reader.read(Entry(self.config, module, bias, shapes, above))
            method.check(leaf.layer)
            codec = codec_of(method)
            for suffix in codec.zeros(method, leaf.layer):
                self.tensors.pop(start + suffix, None)
            arrays = {
                name: self._ours(start, one, leaf.layer)
                for name, one in codec.tensors(method, leaf.layer).items()
            }
            found[leaf] = method, {**arrays, **self._fresh(codec.fresh, method, leaf)}
            for name, one in codec.shared(method, leaf.layer).items():
                if name not in self.shared:
                    self.shared[name] = self._ours(SHARED, one, leaf.layer)
                if codec.copied:
                    self._check_copy(start, one, leaf.layer, self.shared[name])
        return found

    def _ours(self, start: str, one: Lying, layer: Layer) -> np.ndarray:
        name, below = start + one.suffix, one.below
        value = take(self.tensors, name, one.shape, "int" if below else "float")
        limit = np.reshape(below or np.inf, (-1, *[1] * (value.ndim - 1)))
        if below and not np.all((value >= 0) & (value < limit)):
            raise AdapterFileError(
                f"{name}: expected integers >= 0, in each row below {list(below)}, "
                f"found {value.min()} to {value.max()}"
            )
        return one.to_ours(value, layer)

    def _check_copy(
        self, start: str, one: Lying, layer: Layer, shared: np.ndarray
    ) -> None:
        if not np.array_equal(self._ours(start, one, layer), shared):
            raise AdapterFileError(
                f"{start}{one.suffix}: expected the numbers of {SHARED}{one.suffix}, "
                "which all modules share, found others"
            )

    def _fresh(
        self, names: tuple[str, ...], method: Method, leaf: Leaf
    ) -> dict[str, np.ndarray]:
        """Return those arrays of a fresh adapter that no file holds."""
        own = self.params[leaf.path]
        if names and isinstance(own, jax.ShapeDtypeStruct):
            raise AdapterFileError(
                f"{leaf.path}: {type(method).__name__} starts from the weight itself; "
                "expected variables that hold it, found only its shape"
            )
        if not names:
            return {}
        kernel = jnp.asarray(own if leaf.number is None else own[leaf.number])
        view = kernel.astype(jnp.float32).reshape(leaf.layer.d_in, leaf.layer.d_out)
        start = method.init(jax.random.key(0), replace(leaf.layer, kernel=view))
        return {name: np.asarray(start[name]) for name in names}

    def tied_copies(self, model: Model, found: Found) -> set[str]:
        """Take out the copy that a tied output layer has of an adapter, if any.

        Returns:
            The paths of tables whose output layer has the same adapter.
        """
        tied, same = family_of(model).tied(model), set[str]()
        for leaf, (method, arrays) in found.items():
            codec = CODECS[type(method)]
            if leaf.path != tied or not isinstance(codec, Codec) or not codec.tied:
                continue
            for name, one in codec.tensors(method, leaf.layer).items():
                copy = f"{OUTPUT}.{one.suffix}"
                if copy not in self.tensors:
                    return same
                if not np.array_equal(
                    self._ours(f"{OUTPUT}.", one, leaf.layer), arrays[name]
                ):
                    raise AdapterFileError(
                        f"{copy}: expected the numbers of {leaf.module}, which is the "
                        "same table in this model (tie_word_embeddings), found others"
                    )
            same.add(leaf.path)
        return same

    def biases(self) -> Found:
        """Return the biases trained beside the adapter."""
        mode, saved = self.config["bias"], {*self.modules.named(self.config)}
        chosen = [
            leaf
            for leaf in self.modules.leaves.values()
            if leaf.name == "bias" and leaf not in saved
            if mode == "all" or (mode != "none" and leaf.module in self.targets)
        ]
        return {
            leaf: self._full(leaf, ".base_layer" * (leaf.module in self.targets))
            for leaf in chosen
        }

    def saved(self) -> Found:
        """Return the parameters of `modules_to_save`."""
        leaves = self.modules.named(self.config)
        names = {f"{leaf.module}.{leaf.name}" for leaf in leaves}
        for name in list(self.tensors):
            # With trained biases the library also saves its two copies of a module's.
            if _COPIES.search(name) and _COPIES.sub("", name) in names:
                del self.tensors[name]
        return {leaf: self._full(leaf) for leaf in leaves}

    def _full(self, leaf: Leaf, infix: str = "") -> tuple[Method, dict]:
        shape = tuple(leaf.shape[i] for i in np.argsort(leaf.order))
        value = take(self.tensors, f"{leaf.module}{infix}.{leaf.name}", shape)
        return Full(), {"value": leaf.to_ours(value)}

    def check_rest(self, model: str) -> None:
        """Raise unless what is left repeats weights of the base model."""
        strange = []
        for name, tensor in self.tensors.items():
            leaf = self.modules.leaves.get(name.replace(".base_layer.", "."))
            if leaf is None or not _repeats(leaf, tensor, self.params[leaf.path]):
                strange.append(name)
        if strange:
            raise AdapterFileError(
                f"{len(strange)} tensors are neither in this {model} nor meant by the "
                f"configuration, or differ from the base model's: "
                f"{', '.join(sorted(strange)[:6])}. Was the adapter trained on another "
                "model, or does this one lack its head?"
            )


def take(
    tensors: dict[str, Tensor],
    name: str,
    shape: tuple[int, ...],
    number: str = "float",
) -> np.ndarray:
    """Return a tensor as float32 or int32 and take it out of those that are left.

    Raises:
        AdapterFileError: it is absent, of another shape or kind, or not finite.
    """
    found = tensors.pop(name, None)
    if found is None:
        near = ", ".join(nearest(name, list(tensors), 2)) or "nothing"
        raise AdapterFileError(
            f"{name}: expected a tensor of shape {shape} by the configuration, "
            f"found none; nearest of what is left: {near}"
        )
    kind = np.dtype(found.dtype).name
    if found.shape != shape or number not in kind:
        word = {"float": "a floating", "int": "an integer"}[number]
        raise AdapterFileError(
            f"{name}: expected {word} tensor of shape {shape} by model and "
            f"configuration, found {kind}{list(found.shape)}"
        )
    if number == "int":
        return found.read().astype(np.int32)
    if not finite(value := found.read().astype(np.float32)):
        raise AdapterFileError(f"{name}: holds NaN or infinity")
    return value


def _repeats(leaf: Leaf, tensor: Tensor, own: Any) -> bool:
    shape = tuple(leaf.shape[i] for i in np.argsort(leaf.order))
    if isinstance(own, jax.ShapeDtypeStruct) or tensor.shape != shape:
        return False
    own = np.asarray(own if leaf.number is None else own[leaf.number])
    return np.array_equal(leaf.to_ours(tensor.read()), own)
