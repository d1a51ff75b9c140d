"""Adapters of this library in the torch library's files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax import storage
from peftjax.core.method import Method
from peftjax.hub.tensors import (
    AdapterFileError,
    PathLike,
    check_arrays,
    expected_arrays,
    flat,
    write,
)
from peftjax.hub.torch import prefixes, routers
from peftjax.hub.torch.codec import Codec
from peftjax.hub.torch.codecs import CODECS, FIELDS
from peftjax.hub.torch.config import CONFIG, complete
from peftjax.hub.torch.full import describe_full
from peftjax.hub.torch.heads import check_tied
from peftjax.hub.torch.load import PREFIX, TENSORS
from peftjax.hub.torch.modules import Leaf, Modules, is_feedforward
from peftjax.hub.torch.reading import OUTPUT, SHARED
from peftjax.methods.prefix_tuning import PrefixTuning
from peftjax.methods.xlora import XLoRA
from peftjax.models.families import family_of
from peftjax.models.family import Model
from peftjax.models.names import Layout
from peftjax.storage import replacing_folder


def save_torch(
    folder: PathLike,
    model: Model,
    peft: Any,
    adapters: Mapping,
    *,
    base_model_name: str | None = None,
    layout: Layout = "hf5",
) -> Path:
    """Write adapters as the torch library has them.

    `adapter_config.json` and `adapter_model.safetensors`, for the methods of
    `codecs.CODECS`, `PrefixTuning` and `XLoRA`, which has a folder for each module; one
    at a time, as there. Leaves of `Full` become `modules_to_save` or trained biases.
    What acts in training only (HRA's penalty and start) is left out. The folder appears
    whole or not at all.

    Args:
        folder: the folder to write; it must be absent or empty.
        model: the module that was adapted, one of `peftjax.models`.
        peft: what `adapt` returned.
        adapters: `{path: {name: array}}`.
        base_model_name: what the library calls the frozen model, a path or repository.
        layout: of the names; `"hf5"`: transformers 5; `"hf"`: transformers 4, other for
            ViT alone; `"timm"` for a ViT of timm.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder is not empty.
        AdapterFileError: the adapters are not those of `peft`, not finite, or have no
            equal there; the message names the site.
    """
    folder = storage.path(folder)
    check_arrays("adapters", flat(expected_arrays(peft)), flat(adapters))
    try:
        parts = _parts(folder, model, peft, adapters, layout)
    except ValueError as error:
        raise AdapterFileError(f"{folder}: not written: {error}") from error
    with replacing_folder(folder) as new:
        for name, (config, tensors) in parts.items():
            config["base_model_name_or_path"] = base_model_name
            (new / name).mkdir(exist_ok=True)
            write(new / name / TENSORS, tensors)
            # fields alone are sorted: the library reads modules in the file's order
            text = json.dumps(dict(sorted(config.items())), indent=2)
            (new / name / CONFIG).write_text(f"{text}\n")
    return folder


def _parts(
    folder: Path, model: Model, peft: Any, adapters: Mapping, layout: Layout
) -> dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Return configuration and tensors by folder within; `""` is the folder itself."""
    if not any(isinstance(site.method, XLoRA) for site in peft.sites):
        return {"": _translate(model, peft, adapters, layout)}
    config, tensors = routers.written(model, peft, adapters)
    modules = {
        str(i): _translate(model, *module, layout)
        for i, module in enumerate(routers.modules(peft, adapters))
    }
    config["adapters"] = {name: str(folder / name) for name in modules}
    return {"": (config, tensors), **modules}


def _translate(
    model: Model, peft: Any, adapters: Mapping, layout: Layout
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return configuration and tensors."""
    shapes = {
        path: tuple(aval.shape)
        for path, aval in zip(peft.leaves.paths, peft.leaves.avals)
        if path is not None
    }
    headed = family_of(model).head(model) is not None
    modules = Modules(model, shapes, layout, prefix=headed)
    if prefix := [s for s in peft.sites if isinstance(s.method, PrefixTuning)]:
        return _prefix(model, peft, prefix, adapters, modules)
    codec, tied = _codec(peft), family_of(model).tied(model)
    if not codec.tied:
        check_tied(model, {site.path for site in peft.sites})
    entries = [(site, leaf) for site in peft.sites for leaf in modules.at(site.path)]
    methods = {
        leaf.module: site.method for site, leaf in entries if not site.method.replaces
    }
    biased = {module for module in methods if f"{module}.bias" in modules.leaves}
    settings = codec.write(methods, biased)
    tensors, shared, full = {}, {}, {}
    for site, leaf in entries:
        arrays = {
            name: np.asarray(array if leaf.number is None else array[leaf.number])
            for name, array in adapters[site.path].items()
        }
        if site.method.replaces:
            full[leaf] = leaf.to_torch(arrays["value"])
        else:
            own = _adapted(codec, site.method, leaf, arrays)
            tensors.update(own)
            if site.path == tied:
                start = f"{leaf.module}."
                tensors.update(
                    {f"{OUTPUT}.{n.removeprefix(start)}": v for n, v in own.items()}
                )
            for name, one in codec.shared(site.method, leaf.layer).items():
                value = np.asarray(adapters[""][name])
                shared[SHARED + one.suffix] = one.to_torch(value, leaf.layer)
                if codec.copied:
                    copy = shared[SHARED + one.suffix]
                    tensors[f"{leaf.module}.{one.suffix}"] = copy
    settings, tensors = codec.pack(settings, tensors)
    fields, more = describe_full(full, modules, {*methods}, codec.peft_type)
    config = {
        "peft_type": codec.peft_type,
        "inference_mode": True,
        "task_type": _task(model, fields["modules_to_save"]),
        **settings,
        **fields,
    }
    named = {f"{PREFIX}{name}": value for name, value in {**tensors, **more}.items()}
    return _with_targets(config, methods, modules), {**named, **shared}


def _prefix(
    model: Model, peft: Any, own: list[Any], adapters: Mapping, modules: Modules
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return configuration and tensors of a prefix and of the modules beside it."""
    others = [site for site in peft.sites if site not in own]
    if other := [site for site in others if not site.method.replaces]:
        raise ValueError(
            f"{other[0].path}: the torch library holds one method in a file; found "
            f"{type(other[0].method).__name__} beside a prefix. Save them apart"
        )
    full = {
        leaf: leaf.to_torch(
            np.asarray(value if leaf.number is None else value[leaf.number])
        )
        for site in others
        for leaf in modules.at(site.path)
        for value in [adapters[site.path]["value"]]
    }
    method, path = own[0].method, own[0].path
    settings, tensors = prefixes.written(model, method, adapters[path])
    fields, more = describe_full(full, modules, set(), prefixes.TYPE)
    if fields.get("bias"):
        raise ValueError("bias: the torch library trains none beside a prefix")
    config = {
        "peft_type": prefixes.TYPE,
        "inference_mode": True,
        "task_type": _task(model, fields["modules_to_save"]),
        **settings,
        **fields,
    }
    return config, {**tensors, **{f"{prefixes.START}{n}": v for n, v in more.items()}}


def _codec(peft: Any) -> Codec:
    """Return the one codec of all adapted sites."""
    found: dict[type[Method], str] = {}
    chosen: list[Codec] = []
    for site in peft.sites:
        if site.method.replaces:
            continue
        method = type(site.method)
        codec = CODECS.get(method, "it is no method of this library")
        if isinstance(codec, str):
            known = [m.__name__ for m, c in CODECS.items() if isinstance(c, Codec)]
            raise ValueError(
                f"{site.path}: {method.__name__} has no equal in the torch library: "
                f"{codec}. Expected one of {', '.join(known)}; peftjax.to_lora makes "
                "the nearest LoRA"
            )
        if found.setdefault(method, site.path) == site.path:
            chosen.append(codec)
    if len(chosen) != 1:
        listed = [f"{method.__name__} at {path}" for method, path in found.items()]
        raise ValueError(
            "the torch library holds one method in a file, and no file without one; "
            f"found {' and '.join(listed) or 'only leaves of Full'}"
        )
    return chosen[0]


def _adapted(
    codec: Codec, method: Method, leaf: Leaf, arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the tensors of one adapted weight."""
    if leaf.kind not in codec.kinds:
        raise ValueError(
            f"{leaf.path}: {type(method).__name__} on a layer of kind {leaf.kind} has "
            f"no equal in the torch library; expected {' or '.join(codec.kinds)}"
        )
    tensors = {
        one.suffix: one.to_torch(arrays[name], leaf.layer)
        for name, one in codec.tensors(method, leaf.layer).items()
    }
    for suffix, shape in codec.zeros(method, leaf.layer).items():
        tensors[suffix] = np.zeros(shape, np.float32)
    return {f"{leaf.module}.{suffix}": value for suffix, value in tensors.items()}


def _task(model: Model, saved: list[str] | None) -> str | None:
    """Return the task type by which the library wraps the model."""
    family = family_of(model)
    if family.head(model) == "lm":
        return "SEQ_2_SEQ_LM" if family.seq2seq else "CAUSAL_LM"
    trained = {"classifier", "score"} & {*(saved or ())}
    return "SEQ_CLS" if family.tokenizer and trained else None


def _with_targets(
    config: dict[str, Any], methods: Mapping[str, Any], modules: Modules
) -> dict[str, Any]:
    """Return the configuration with the shortest names that mean the same modules."""
    inputs = config.get("feedforward_modules", ())
    for shorten in (lambda name: re.sub(r".*?\.\d+\.", "", name, count=1), str):
        named = {**config, "target_modules": sorted({*map(shorten, methods)})}
        ends = sorted({*map(shorten, inputs)})
        if "feedforward_modules" in config:
            named["feedforward_modules"] = ends
        if modules.targeted(complete(named, FIELDS)).keys() == methods.keys() and all(
            is_feedforward(ends, module) == (module in inputs) for module in methods
        ):
            return named
    raise ValueError(
        f"found no list of names that means just these modules: {sorted(methods)[:8]}"
    )
