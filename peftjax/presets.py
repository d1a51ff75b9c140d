"""Placements: the layers that each paper adapts, as rules for `adapt`.

| method | ViT, CLIP | BERT, RoBERTa, DeBERTa | Llama, T5 |
|---|---|---|---|
| LoRA, DoRA, LoRAFA, Composition, XLoRA | q, v | q, v | q, v |
| Hydra | attention output, second MLP layer | second MLP layer | second MLP layer* |
| HydraLoRA | MLP* | MLP* | MLP (the code; the paper's counts fit q, v) |
| GLoRA and its supernet | every linear | every linear* | q, v |
| HRA | every linear* | every linear | q, v |
| OFT | every linear* | every linear* | q, v* |
| IA3 | output of k, v; input of the second MLP layer | the same | the same |
| AdaLoRA | every linear* | every linear | every linear* |
| LoKr | every linear | every linear* | every linear* |
| SSF | every linear and the patches | every linear* | every linear* |
| VeRA | q, v* | q, v | q, v* |
| FourierFT | q, v | q, v | q, v |
| LoRAXS | q, v, outputs* | q, v, both outputs | every linear |
| PiSSA, OLoRA, MiSS, GraLoRA | every linear* | every linear* | every linear |
| HiRA, SHiRA | q, k, v, MLP* | q, k, v, MLP* | q, k, v, up, down |
| BOFT, RoAd | every linear* | every linear | every linear |
| LoHa, DeLoRA, RandLoRA, C3A | every linear* | every linear* | every linear* |
| FacT | every linear | every linear* | every linear* |
| RepAdapter | q, k, v; first MLP layer | the same* | the same, and the gate* |
| VPT, PrefixTuning | VPT-deep | keys and values of every layer | the same |
| Bottleneck | output of attention and MLP* | the same (Houlsby) | the same* |
| Compacter | output of attention and MLP* | the same | the same* |
| LoReFT | what each whole layer returns* | the same | the same |

A star marks a placement of ours where the paper or its code has none. A ViT whose q, k,
v share one matrix is adapted there in all three, as in timm-based code; its LoRA is
then not that of papers that adapt q and v alone. DeBERTa, CLIP and T5 have no places of
prompts. SSF is not put after LayerNorm here.
A T5 is adapted in both stacks, and in the decoder in both attentions. The torch library
has its q and v for most methods, as here for LoRA, HRA, OFT and GLoRA, and for IA3 the
same as here; for AdaLoRA every linear of T5 v1.0, but not the first two of a gated MLP.
Of a CLIP the image tower is adapted, by Hydra in the second MLP layer alone.

In a U-Net HRA adapts queries, keys, values and outputs of every attention, to itself
and to the text, as its paper does; so do OFT and LoRA, which it compares itself with.
Their code of controllable generation adapts the first layer of every MLP too: that is
`parts=CONTROL`.
Every other method is placed there as in a BERT, a choice of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from peftjax import methods
from peftjax.core.method import Method, OutputMethod
from peftjax.methods.full import Full
from peftjax.methods.ia3 import IA3
from peftjax.models.families import FAMILIES
from peftjax.models.family import Family, Placements

Part = Literal["query", "key", "value", "output", "gate", "up", "down", "patches"]
Baseline = Literal["full", "linear", "bitfit", "layernorm"]

_EVERY = ("query", "key", "value", "output", "gate", "up", "down")
_LORA = ("query", "value")
_ATTENTION = ("query", "key", "value", "output")
CONTROL: tuple[Part, ...] = ("query", "key", "value", "output", "up")
# Method -> the parts, by `Placements.like` where they differ ("" for the others).
_PLACES: dict[type[Method], dict[str, Sequence[str]]] = {
    methods.LoRA: {"": _LORA, "unet": _ATTENTION},
    methods.DoRA: {"": _LORA},
    methods.AdaLoRA: {"": _EVERY},
    methods.PiSSA: {"": _EVERY},
    methods.OLoRA: {"": _EVERY},
    methods.LoRAFA: {"": _LORA},
    methods.LoKr: {"": _EVERY},
    methods.LoHa: {"": _EVERY},
    methods.MiSS: {"": _EVERY},
    methods.DeLoRA: {"": _EVERY},
    methods.HiRA: {"": ("query", "key", "value", "up", "down")},
    methods.GraLoRA: {"": _EVERY},
    methods.FourierFT: {"": _LORA},
    methods.C3A: {"": _EVERY},
    methods.SHiRA: {"": ("query", "key", "value", "up", "down")},
    methods.FacT: {"": _EVERY},
    methods.RepAdapter: {"": ("query", "key", "value", "gate", "up")},
    methods.LoRAXS: {"": ("query", "value", "output", "down"), "llama": _EVERY},
    methods.VeRA: {"": _LORA},
    methods.RandLoRA: {"": _EVERY},
    methods.Composition: {"": _LORA},
    methods.XLoRA: {"": _LORA},
    methods.Hydra: {"": ("down",), "vit": ("output", "down")},
    methods.HydraLoRA: {"": ("gate", "up", "down")},
    methods.GLoRA: {"": _EVERY, "llama": _LORA},
    methods.GLoRASupernet: {"": _EVERY, "llama": _LORA},
    methods.HRA: {"": _EVERY, "llama": _LORA, "unet": _ATTENTION},
    methods.OFT: {"": _EVERY, "llama": _LORA, "unet": _ATTENTION},
    methods.BOFT: {"": _EVERY},
    methods.RoAd: {"": _EVERY},
    methods.Bottleneck: {"": ("output", "down")},
    methods.Compacter: {"": ("output", "down")},
    methods.IA3: {"": ("key", "value", "down")},
    methods.SSF: {"": _EVERY, "vit": (*_EVERY, "patches")},
}


def rules(
    family: str,
    method: Method | Baseline,
    *,
    parts: Sequence[Part] | None = None,
    head: bool | None = None,
) -> dict[str, Method]:
    r"""Return the rules that adapt a model as the method's paper does.

    They fit scanned and unrolled layers alike.

    Args:
        family: what one of `peftjax.models.FAMILIES` is called, such as `"roberta"`.
        method: a method, or `"full"`, `"linear"` (the head alone), `"bitfit"` (every
            bias) or `"layernorm"` (scales and biases of the norms, arXiv 2312.11420).
        parts: other parts than the paper's: of `"query"`, `"key"`, `"value"`,
            `"output"`, `"gate"`, `"up"`, `"down"`, `"patches"`; a method of your own
            needs them.
        head: train the task head too; by default where the family's models have one
            (not for a language model or a U-Net). HRA's released code does not.

    Returns:
        Regular expression to method, for `adapt(rules=...)`.

    Raises:
        ValueError: the family, the baseline or a part is not known, the method has no
            placement, or the models have no head to train.

    >>> list(rules("roberta", methods.LoRA(rank=8, alpha=16.0)))
    ['layers(_\\d+)?/(attention/query|attention/value)/kernel', 'classifier/.*']
    """
    record = _find(family)
    places = record.placements
    own = places.head is not None
    head = own and "lm" not in record.heads.named if head is None else head
    if head and not own:
        raise ValueError(
            f"presets: head: a {family} has none to train; give head=False"
        )
    task: dict[str, Method] = {f"{places.head}/.*": Full()} if head else {}
    if isinstance(method, str):
        return _baseline(method, task)
    if "prefix" in method.kinds:
        return {_prefix(family, places, parts): method, **task}
    if isinstance(method, methods.LoReFT) and parts is None:
        return {rf"{places.stack}(_\d+)?:output": method, **task}
    chosen: list[str] = _paper(places, method) if parts is None else [*parts]
    known = [*places.parts, *(["patches"] if places.patches else [])]
    if absent := [part for part in chosen if part not in known]:
        raise _unknown(f"part of {family}", absent[0], known)
    found: dict[str, Method] = {}
    for variant, group in _variants(method, chosen):
        if inner := [part for part in group if part != "patches"]:
            found[_inside(places, inner, variant)] = variant
        if "patches" in group:
            found[f"{places.patches}/kernel"] = variant
    return {**found, **task}


def _prefix(family: str, places: Placements, parts: Any) -> str:
    if places.prefix is None or parts is not None:
        raise ValueError(
            f"presets: expected a model with a place of prompts, and no parts; found "
            f"{family} with parts={parts!r}"
        )
    return f"{places.prefix}:output"


def _find(name: str) -> Family:
    families = {name: family for family in FAMILIES for name in family.called}
    if name not in families:
        raise _unknown("family", name, families)
    return families[name]


def _variants(method: Method, parts: list[str]) -> list[tuple[Method, list[str]]]:
    """Return the parts with the method of each: IA3 scales the MLP's input."""
    if not isinstance(method, IA3):
        return [(method, parts)]
    outputs = [part for part in parts if part != "down"]
    inputs = [part for part in parts if part == "down"]
    return [(method, outputs), (replace(method, side="input"), inputs)]


def _baseline(name: str, task: dict[str, Method]) -> dict[str, Method]:
    baselines: dict[str, dict[str, Method]] = {
        "full": {".*": Full()},
        "linear": task,
        "bitfit": {"(.*/)?bias": Full(), **task},
        "layernorm": {r"(.*/)?\w*norm\w*/(scale|bias)": Full(), **task},
    }
    if name not in baselines:
        raise _unknown("baseline", name, baselines)
    if not baselines[name]:
        raise ValueError("presets: linear probing needs a head: give head=True")
    return baselines[name]


def _paper(placements: Placements, method: Method) -> list[str]:
    if isinstance(method, methods.Bottleneck) and method.side == "input":
        raise ValueError(
            "presets: a Bottleneck(side='input') is beside a module, which is no part; "
            r"write its rule, r'blocks_\d+/mlp:output' for the MLPs of a ViT"
        )
    for kind in type(method).__mro__:
        if places := _PLACES.get(kind):
            parts = places.get(placements.like, places[""])
            return [part for part in parts if part in (*placements.parts, "patches")]
    raise ValueError(
        f"presets: {type(method).__name__} has no placement of a paper; give "
        f"parts=(...), of {', '.join(placements.parts)}"
    )


def _inside(places: Placements, parts: Sequence[str], method: Method) -> str:
    inner = "|".join(places.parts[part] for part in parts)
    end = ":output" if isinstance(method, OutputMethod) else "/kernel"
    return rf"{places.stack}(_\d+)?/({inner}){end}"


def _unknown(what: str, found: Any, known: Any) -> ValueError:
    return ValueError(
        f"presets: {what}: expected one of {', '.join(known)}; found {found!r}"
    )
