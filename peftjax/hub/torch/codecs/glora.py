"""GLoRA in the torch library's files: A and B of one form, and so D and E."""

from __future__ import annotations

from typing import Any

from peftjax.core.method import Layer, Method
from peftjax.hub.torch.codec import Codec, Entry, Methods, Tensor, uniform
from peftjax.hub.torch.config import ANY, RANK, Field, only
from peftjax.methods.glora import GLoRA

_FIELDS: dict[str, Field] = {
    "bias": only("none", "all", "glora_only"),
    "config_A_B": only("lora", "vector", "constant", "none"),
    "config_C": only("lora", "vector", "none"),
    "config_D_E": only("constant", "vector", "none"),
    "init_weights": ANY,
    "r": RANK,
}


def _read(entry: Entry) -> Method:
    config = entry.config
    ab, c, de = config["config_A_B"], config["config_C"], config["config_D_E"]
    if not entry.bias:  # the library leaves out what would create one
        c = de = "none"
    return GLoRA(config["r"], a=ab, b=ab, c=c, d=de, e=de)


def _tensors(method: GLoRA, layer: Layer) -> dict[str, Tensor]:
    found, d_in, d_out = {}, layer.d_in, layer.d_out
    for name, rank in zip("abcde", (*method.ranks, 0, 0)):
        form, there = getattr(method, name), f"glora_{name.upper()}"
        width = d_in if name == "c" else d_out
        column = (width, 1) if name in "abc" else (width,)
        if form == "constant":
            found[name] = Tensor(f"{there}.X", (1,), ours=())
        elif form == "vector":
            found[name] = Tensor(f"{there}.X", column, ours=(width,))
        elif form == "lora" and name == "c":
            found["c_in"] = Tensor(f"{there}.Xd", (d_in, rank))
            found["c_out"] = Tensor(f"{there}.Xu", (rank, 1), ours=(rank,))
        elif form == "lora":
            found[f"{name}_in"] = Tensor(f"{there}.Xu", (rank, d_in), flip=True)
            found[f"{name}_out"] = Tensor(f"{there}.Xd", (d_out, rank), flip=True)
    return found


def _zeros(method: GLoRA, layer: Layer) -> dict[str, tuple[int, ...]]:
    square, d_out = (layer.d_out, layer.d_in), (layer.d_out,)
    shapes = {"a": square, "b": square, "c": (layer.d_in, 1), "d": d_out, "e": d_out}
    return {
        f"glora_{name.upper()}.zeros": shape
        for name, shape in shapes.items()
        if getattr(method, name) == "none"
    }


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    for module, method in methods.items():
        pairs = (method.a, method.d) == (method.b, method.e)
        alone = module in biased or (method.c, method.e) == ("none", "none")
        one = len(set(method.ranks)) == 1 and method.semantics == "elementwise"
        if not (pairs and alone and one):
            raise ValueError(
                f"{module}: expected what the torch library's GLoRA can be: one form "
                "for a and b, one for d and e, one rank, element-wise, and no c and e "
                f"where the layer has no bias; found {method}"
            )
    having = {m: method for m, method in methods.items() if m in biased}
    return {
        "r": uniform(methods, "ranks")[0],
        "config_A_B": uniform(methods, "a"),
        "config_C": uniform(having, "c") if having else "none",
        "config_D_E": uniform(having, "d") if having else "none",
    }


CODEC = Codec("GLORA", ("dense",), _FIELDS, _read, _tensors, _write, _zeros)
