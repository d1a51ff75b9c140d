"""FourierFT in the torch library's files: the seed stands for the places."""

from __future__ import annotations

from typing import Any

from peftjax.core.method import Layer, Method
from peftjax.hub.torch.codec import Codec, Entry, Methods, Tensor, by_module, uniform
from peftjax.hub.torch.config import COUNT, FLAG, NUMBER, RANK, Field, only, table
from peftjax.hub.torch.modules import pattern_value
from peftjax.methods.fourierft import FourierFT

_FIELDS: dict[str, Field] = {
    "bias": only("none", "all", "fourier_only"),
    "fan_in_fan_out": FLAG,
    "init_weights": FLAG,
    "n_frequency": RANK,
    "n_frequency_pattern": table(RANK),
    "random_loc_seed": COUNT,
    "scaling": NUMBER,
}


def _read(entry: Entry) -> Method:
    config = entry.config
    return FourierFT(
        pattern_value(
            config["n_frequency_pattern"], entry.module, config["n_frequency"]
        ),
        float(config["scaling"]),
        config["random_loc_seed"],
        "zeros" if config["init_weights"] else "normal",
    )


def _tensors(method: FourierFT, layer: Layer) -> dict[str, Tensor]:
    return {"spectrum": Tensor("fourierft_spectrum", (method.frequencies,))}


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    common, others = by_module(methods, "frequencies")
    return {
        "n_frequency": common,
        "n_frequency_pattern": others,
        "scaling": uniform(methods, "scale"),
        "random_loc_seed": uniform(methods, "seed"),
        "init_weights": uniform(methods, "start") == "zeros",
    }


CODEC = Codec("FOURIERFT", ("dense",), _FIELDS, _read, _tensors, _write)
