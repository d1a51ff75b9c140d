"""What it takes to bring a method of ours into the torch library's files and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from peftjax.core.method import Kind, Layer, Method
from peftjax.hub.torch.config import Config, Fields

Methods = Mapping[str, Any]  # methods by module, all of one class


class Tensor(NamedTuple):
    """How one array of an adapter lies in the torch library's file.

    Attributes:
        suffix: its name after the module's.
        shape: its shape there.
        ours: our shape, where it differs.
        flip: ours is the transpose, with a convolution's window among its rows.
        rows: our rows run over a convolution's window, (kh, kw, c_in); torch's over
            (c_in, kh, kw).
        below: the numbers are integers; those of row i are at least 0 and below this.
    """

    suffix: str
    shape: tuple[int, ...]
    ours: tuple[int, ...] | None = None
    flip: bool = False
    rows: bool = False
    below: tuple[int, ...] = ()

    def to_torch(self, value: np.ndarray, layer: Layer) -> np.ndarray:
        """Return the array as it lies there."""
        if self.rows and layer.spatial:
            window = value.reshape(*layer.spatial, -1, value.shape[-1])
            value = np.moveaxis(window, -2, 0).reshape(value.shape)
        return (value.T if self.flip else value).reshape(self.shape)

    def to_ours(self, value: np.ndarray, layer: Layer) -> np.ndarray:
        """Return the array as it lies here."""
        if self.flip:
            value = value.reshape(self.shape[0], -1).T
        elif self.ours is not None:
            value = value.reshape(self.ours)
        if self.rows and layer.spatial:
            window = value.reshape(-1, *layer.spatial, value.shape[-1])
            value = np.moveaxis(window, 0, -2).reshape(value.shape)
        return value


class Entry(NamedTuple):
    """What a file says of one adapted module.

    Attributes:
        config: the configuration.
        module: its name.
        bias: the layer has one.
        shapes: of its tensors, by suffix.
        shared: shapes of the tensors that all modules share.
    """

    config: Config
    module: str
    bias: bool
    shapes: Mapping[str, tuple[int, ...]]
    shared: Mapping[str, tuple[int, ...]]


class Codec(NamedTuple):
    """How a method of ours lies in the torch library's files.

    Attributes:
        peft_type: its name there.
        kinds: kinds of layer on which the two agree.
        fields: of the configuration, beside those of every method.
        read: our method, from what a file says of one module.
        tensors: the arrays of our method on a layer, by our names.
        write: the fields of a configuration, from our methods by module and the set of
            modules that have a bias.
        zeros: what else the library saves: arrays of zeros, by suffix.
        unpack: configuration and tensors of a whole file, as `read` and `tensors` take
            them, where the file holds them in another form.
        pack: the inverse, of the settings of `write` and arrays.
        shared: the arrays that all layers share, as `tensors`; they have no module.
        copied: every module holds a copy of them beside its own.
        fresh: names of frozen arrays that no file holds: those of a fresh adapter on
            the frozen weight.
        tied: of a table that is the output layer as well, that layer has the adapter
            too, and the file a copy of it.
    """

    peft_type: str
    kinds: tuple[Kind, ...]
    fields: Fields
    read: Callable[[Entry], Method]
    tensors: Callable[[Any, Layer], dict[str, Tensor]]
    write: Callable[[Methods, set[str]], dict[str, Any]]
    zeros: Callable[[Any, Layer], dict[str, tuple[int, ...]]] = lambda *_: {}
    unpack: Callable[[Config, Any], tuple[Config, Any]] = lambda *both: both
    pack: Callable[[Any, Any], tuple[Any, Any]] = lambda *both: both
    shared: Callable[[Any, Layer], dict[str, Tensor]] = lambda *_: {}
    copied: bool = False
    fresh: tuple[str, ...] = ()
    tied: bool = False


def uniform(methods: Methods, setting: str) -> Any:
    """Return a setting that the file holds once, for all modules.

    Raises:
        ValueError: two modules differ in it.
    """
    (first, method), *others = methods.items()
    value = getattr(method, setting)
    for module, other in others:
        if getattr(other, setting) != value:
            raise ValueError(
                f"{first} has {setting}={value!r}, {module} {getattr(other, setting)!r}"
                f"; the torch library holds one {setting} for all modules. Save them "
                "as adapters of their own"
            )
    return value


def by_module(methods: Methods, setting: str) -> tuple[float, dict[str, float]]:
    """Return the commonest value of a number, and the others by a module's pattern."""
    values = {module: getattr(method, setting) for module, method in methods.items()}
    numbers: dict[str, float] = {
        m: int(v) if v == int(v) else v for m, v in values.items()
    }
    common = Counter(numbers.values()).most_common(1)[0][0]
    others = {m.replace(".", r"\."): v for m, v in numbers.items() if v != common}
    return common, others
