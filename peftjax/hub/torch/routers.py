"""X-LoRA in the torch library's files: a router, and a folder for each of its modules.

The configuration names each module by its number and a path. Only the last part of the
path is used here, as a folder beside the router, and no other is opened.

The library's release 0.21.2 leaves the router out of what its `save_pretrained` writes,
since its names have the number of a module in them, and parts of the modules out of its
folders; it reads what is written here. Its modules lie below `model`, so those of a
bare model and the output layer have no place there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np

from peftjax import storage
from peftjax.hub.tensors import AdapterFileError
from peftjax.hub.torch.codec import uniform
from peftjax.hub.torch.config import ANY, FLAG, RANK, Config, Field, only
from peftjax.hub.torch.rules import Adapters
from peftjax.methods.composition import Composed, Module
from peftjax.methods.lora import LoRA
from peftjax.methods.xlora import XLoRA
from peftjax.models.families import family_of
from peftjax.models.family import Model
from peftjax.models.leaves import unrolled

TYPE = "XLORA"
START = "base_model.internal_xlora_classifier.layers.0."
NAMES = re.compile(rf"{re.escape(START)}(weight|bias)$")
BELOW = "model."  # what holds the modules that the library can adapt


def _paths(value: Any) -> bool:
    names = {str(i) for i in range(len(value))} if isinstance(value, dict) else None
    return bool(value) and value.keys() == names and all(map(_text, value.values()))


def _text(value: Any) -> bool:
    return isinstance(value, str)


# Depth and size are of deeper routers, which alone have dropout.
FIELDS: Mapping[str, Field] = {
    "adapters": Field(None, 'paths by "0", "1" and so on', _paths),
    "enable_softmax": only(True, False),
    "enable_softmax_topk": only(False),
    "global_scaling_weight": only(1.0, 1),
    "hidden_size": RANK._replace(default=4096),
    "layerwise_scalings": FLAG,
    "scaling_pass_value": only(0.0, 0),
    "softmax_temperature": only(1.0, 1),
    "use_trainable_adapters": FLAG,
    "xlora_depth": only(1),
    "xlora_dropout_p": ANY,
    "xlora_size": ANY,
}


def mixed(
    folder: Path,
    config: Config,
    model: Model,
    params: Mapping[str, Any],
    load: Callable[[Path], Module],
    take: Callable[[str, tuple[int, ...]], np.ndarray],
) -> Composed:
    """Return rules and adapters of the modules in a folder, and of their router.

    Args:
        folder: of the router.
        config: its configuration.
        model: the module.
        params: its parameters by path, or their shapes.
        load: return the module in a folder.
        take: return the router's tensor of a name and shape.

    Raises:
        AdapterFileError: a module is not in the folder, or no LoRA; the model is of
            another family or width.
    """
    reads, hidden, width = _last(model), config["hidden_size"], _width(model)
    if hidden != width:
        raise AdapterFileError(
            f"hidden_size: expected the model's {width}, not {hidden}"
        )
    modules = [_module(place, load) for place in _places(folder, config["adapters"])]
    settings = config["enable_softmax"], not config["layerwise_scalings"]
    train = config["use_trainable_adapters"]
    found = XLoRA.of(modules, hidden, reads, *settings, train)
    layers = _layers(model, {path: params[path].shape for path in found.adapters})
    n, of = len(modules), [*layers.values()] if config["layerwise_scalings"] else [""]
    weight = take("weight", (len(of) * n, hidden)).reshape(-1, n, hidden)
    bias = take("bias", (len(of) * n,)).reshape(-1, n)
    adapters = {path: dict(own) for path, own in found.adapters.items()}
    for path in dict.fromkeys(of):
        own, at = adapters.setdefault(path, {}), [p == path for p in of]
        stack = own["scale"].shape[:-1] if path else ()
        router = weight[at].swapaxes(1, 2).reshape(*stack, hidden, n)
        own["router"] = jnp.asarray(router)
        own["router_bias"] = jnp.asarray(bias[at].reshape(*stack, n))
    return found._replace(adapters=adapters)


def _places(folder: Path, paths: Mapping[str, str]) -> Iterator[Path]:
    """Yield the folders of the modules, in the order of the gates."""
    given = [paths[str(i)] for i in range(len(paths))]
    names = [PurePosixPath(path).name for path in given]
    for i, name in enumerate(names):
        if name not in storage.names(folder) or name in names[:i]:
            raise AdapterFileError(
                f"adapters: the path of module {i} is {given[i]!r}, expected a folder "
                f"{name!r} of its own in {folder}, found none. Copy the module there; "
                "no path out of this folder is followed"
            )
        yield folder / name


def _module(place: Path, load: Callable[[Path], Module]) -> Module:
    """Return the LoRA in a folder."""
    rules, adapters = load(place)
    assert isinstance(rules, Mapping)
    for rule, method in rules.items():
        if not isinstance(method, LoRA) or method.dropout:
            raise AdapterFileError(
                f"{place}: {rule}: expected LoRA without dropout, found {method}. "
                "Set lora_dropout to 0, where only training is to differ"
            )
    return rules, adapters


def written(
    model: Model, peft: Any, adapters: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the fields of a configuration and the tensors of a router.

    Raises:
        ValueError: the library has no words for these sites.
    """
    methods = {site.path: site.method for site in peft.sites}
    for path, method in methods.items():
        if not isinstance(method, XLoRA):
            raise ValueError(
                f"{path}: the torch library holds nothing beside X-LoRA, found "
                f"{type(method).__name__}; save it apart"
            )
    if (reads := uniform(methods, "reads")) != (last := _last(model)):
        raise ValueError(f"reads: the torch library reads {last!r}, found {reads!r}")
    layers = _layers(model, {site.path: site.shape for site in peft.sites})
    if outside := [name for name in layers if not name.startswith(BELOW)]:
        raise ValueError(
            f"{outside[0]}: the torch library's X-LoRA adapts only what lies below "
            f"{BELOW!r} in a model with its head"
        )
    hidden, n = _width(model), uniform(methods, "modules")
    share = uniform(methods, "share")
    of = [""] if share else [*layers.values()]
    weight, bias = np.empty((len(of), n, hidden), "f4"), np.empty((len(of), n), "f4")
    for path in dict.fromkeys(of):
        own, at = adapters[path], [p == path for p in of]
        router = np.asarray(own["router"]).reshape(-1, hidden, n)
        weight[at] = router.swapaxes(1, 2)
        bias[at] = np.asarray(own["router_bias"]).reshape(-1, n)
    fields = {
        "peft_type": TYPE,
        "enable_softmax": uniform(methods, "softmax"),
        "hidden_size": hidden,
        "inference_mode": True,
        "layerwise_scalings": not share,
        "task_type": "CAUSAL_LM" if family_of(model).head(model) == "lm" else None,
        "use_trainable_adapters": uniform(methods, "train"),
        "xlora_depth": 1,
    }
    values = {"weight": weight.reshape(-1, hidden), "bias": bias.reshape(-1)}
    return fields, {f"{START}{name}": value for name, value in values.items()}


def modules(peft: Any, adapters: Mapping[str, Any]) -> Iterator[tuple[Any, Adapters]]:
    """Yield the modules that are mixed, each as a plan of LoRA and its arrays."""
    for n in range(peft.sites[0].method.modules):
        sites, arrays = [], {}
        for site in peft.sites:
            own = adapters[site.path]
            a, b = (
                np.asarray(own["a"])[..., n, :, :],
                np.asarray(own["b"])[..., n, :, :],
            )
            used = np.nonzero((a != 0).any(-2) | (b != 0).any(-1))[-1]
            rank = int(used.max(initial=0)) + 1  # the rest is padding
            scale = np.unique(np.asarray(own["scale"])[..., n])
            if len(scale) != 1:
                raise ValueError(
                    f"{site.path}: module {n} has scales {scale} in a stack"
                )
            lora = LoRA(rank, alpha=float(scale[0] * np.float32(rank)))
            sites.append(replace(site, method=lora))
            arrays[site.path] = {"a": a[..., :rank], "b": b[..., :rank, :]}
        yield SimpleNamespace(leaves=peft.leaves, sites=sites), arrays


def _layers(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return our paths by torch's names, in the order of its layers."""
    family = family_of(model)
    ours = {one: p for p, shape in shapes.items() for one in unrolled(p, shape)}
    where = family.sources(model, prefix=family.head(model) is not None)
    return {where[one].tensors[0]: ours[one] for one in where if one in ours}


def _last(model: Model) -> str:
    last = family_of(model).last
    if last is None:
        raise AdapterFileError(
            f"{TYPE}: the router reads the last hidden state, which no module of a "
            f"{type(model).__name__} here returns; expected a Llama"
        )
    return last


def _width(model: Model) -> int:
    return vars(model)["config"].hidden_size
