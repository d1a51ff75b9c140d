"""AdaLoRA in the torch library's files, which hold the triplets that are left.

`rank_pattern` says which of `init_r` triplets a file holds of each module. Read, the
others are zeros; what only allocates ranks (sensitivities) is in no file and starts
anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from peftjax.core.method import Layer, Method
from peftjax.hub.torch.codec import Codec, Entry, Methods, Tensor, uniform
from peftjax.hub.torch.codecs import lora
from peftjax.hub.torch.config import COUNT, NUMBER, RANK, Config, Field
from peftjax.methods.adalora import AdaLoRA
from peftjax.models.files import Tensor as Stored

_SHARE = Field(
    0.85, "a number between 0 and 1", lambda v: NUMBER.accepts(v) and 0 < v < 1
)
_SIZE = Field(0.5, "a number >= 0", lambda v: NUMBER.accepts(v) and v >= 0)
_FIELDS: dict[str, Field] = {
    **lora.FIELDS,
    "beta1": _SHARE,
    "beta2": _SHARE,
    "deltaT": RANK._replace(default=1),
    "init_r": RANK._replace(default=12),
    "orth_reg_weight": _SIZE,
    "rank_pattern": Field(
        {}, "{name of lora_E: one truth value per rank}", lambda v: _is_pattern(v)
    ),
    "target_r": RANK,
    "tfinal": COUNT,
    "tinit": COUNT,
    "total_step": RANK._replace(default=None),
}
_A, _B, _E = ".lora_A", ".lora_B", ".lora_E"
_RANKS = {_A: 0, _B: 1, _E: 0}  # the axis of the ranks
_MASK, _PRUNED = "lora_E.mask", "lora_E.pruned"  # in no file
_MEAN, _SPREAD = ".mean", ".spread"  # nor these


def _is_pattern(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(kept, list) and all(isinstance(one, bool) for one in kept)
        for kept in value.values()
    )


def _read(entry: Entry) -> Method:
    config = entry.config
    return AdaLoRA(
        config["init_r"],
        float(config["lora_alpha"]),
        config["target_r"],
        total_steps=config["total_step"],
        warmup=config["tinit"],
        final=config["tfinal"],
        every=config["deltaT"],
        penalty_weight=config["orth_reg_weight"],
        beta1=config["beta1"],
        beta2=config["beta2"],
        dropout=float(config["lora_dropout"]),
    )


def _tensors(method: AdaLoRA, layer: Layer) -> dict[str, Tensor]:
    r, one = method.rank, (method.rank,)
    found = {
        "a": Tensor("lora_A", (r, layer.d_in), flip=True, rows=True),
        "b": Tensor("lora_B", (layer.d_out, r), flip=True),
        "e": Tensor("lora_E", (r, 1), ours=one),
    }
    for name, tensor in [*found.items()]:
        for kind, suffix in (("mean", _MEAN), ("spread", _SPREAD)):
            moved = tensor._replace(suffix=tensor.suffix + suffix)
            found[f"{name}_{kind}"] = moved
    return {**found, "mask": Tensor(_MASK, one), "pruned": Tensor(_PRUNED, one)}


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    if uniform(methods, "penalty_norm") != "frobenius":
        raise ValueError("penalty_norm: expected 'frobenius', as the torch library's")
    first = next(iter(methods.values()))
    start, end = first.phases()
    return {
        "init_r": uniform(methods, "rank"),
        "lora_alpha": uniform(methods, "alpha"),
        "target_r": uniform(methods, "target_rank"),
        "total_step": uniform(methods, "total_steps"),
        "tinit": start,
        "tfinal": first.total_steps - end,
        "deltaT": uniform(methods, "every"),
        "orth_reg_weight": uniform(methods, "penalty_weight") * 2 * len(methods),
        "beta1": uniform(methods, "beta1"),
        "beta2": uniform(methods, "beta2"),
        "lora_dropout": uniform(methods, "dropout"),
    }


def _unpack(
    config: Config, tensors: Mapping[str, Stored]
) -> tuple[Config, dict[str, Stored]]:
    """Return all ranks of every module, and what a file has nothing of."""
    found = dict(tensors)
    modules = [name.removesuffix(_E) for name in tensors if name.endswith(_E)]
    patterns = {_key(name): kept for name, kept in config["rank_pattern"].items()}
    if strange := patterns.keys() - {module + _E for module in modules}:
        raise ValueError(f"rank_pattern: {sorted(strange)[0]}: no tensor of this name")
    for module in modules:
        rank = config["init_r"]
        kept = np.array(patterns.get(module + _E, [True] * rank))
        if kept.shape != (rank,):
            raise ValueError(
                f"rank_pattern: {module}{_E}: expected {rank} truth values, init_r, "
                f"found {len(kept)}"
            )
        for end, axis in _RANKS.items():
            name = module + end
            if name in found:
                found[name] = _spread(found[name], kept, axis)
                for suffix in (_MEAN, _SPREAD):
                    found[name + suffix] = _array(np.zeros(found[name].shape))
        found[f"{module}.{_MASK}"] = _array(kept)
        found[f"{module}.{_PRUNED}"] = _array(np.zeros(rank))
    weight = config["orth_reg_weight"] / max(2 * len(modules), 1)
    return {**config, "orth_reg_weight": weight}, found


def _pack(
    config: dict[str, Any], tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the triplets that are left, and their pattern where some are not."""
    found = dict(tensors)
    patterns = {}
    for name in [name for name in tensors if name.endswith(_E)]:
        module = name.removesuffix(_E)
        kept = found.pop(f"{module}.{_MASK}") != 0
        found[name] = found[name] - found.pop(f"{module}.{_PRUNED}")[:, None]
        for end, axis in _RANKS.items():
            found[module + end] = found[module + end].compress(kept, axis)
            for suffix in (_MEAN, _SPREAD):
                del found[module + end + suffix]
        patterns[name] = kept.tolist()
    whole = all(map(all, patterns.values()))
    return {**config, "rank_pattern": None if whole else patterns}, found


def _key(name: str) -> str:
    """Return the name of a tensor by the one in a pattern."""
    return name.removesuffix(".default")


def _array(values: np.ndarray) -> Stored:
    values = values.astype(np.float32)
    return Stored(values.shape, values.dtype, lambda: values)


def _spread(stored: Stored, kept: np.ndarray, axis: int) -> Stored:
    """Return a tensor with zeros for the ranks that are not left."""
    if len(stored.shape) != 2 or stored.shape[axis] != kept.sum():
        raise ValueError(
            f"rank_pattern: expected {kept.sum()} ranks in a tensor, found shape "
            f"{stored.shape}"
        )
    shape = list(stored.shape)
    shape[axis] = len(kept)

    def read() -> np.ndarray:
        whole = np.zeros(shape, stored.dtype)
        whole[(slice(None),) * axis + (kept,)] = stored.read()
        return whole

    return Stored(tuple(shape), stored.dtype, read)


CODEC = Codec(
    "ADALORA",
    ("dense", "conv"),
    _FIELDS,
    _read,
    _tensors,
    _write,
    unpack=_unpack,
    pack=_pack,
)
