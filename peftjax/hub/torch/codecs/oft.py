"""OFT in the torch library's files."""

from __future__ import annotations

import re
from math import isqrt
from typing import Any

from peftjax.core.method import Layer, Method
from peftjax.hub.torch.codec import Codec, Entry, Methods, Tensor, uniform
from peftjax.hub.torch.config import ANY, COUNT, FLAG, NO, Field, only
from peftjax.methods.oft import OFT

_FIELDS: dict[str, Field] = {
    "bias": only("none", "all", "oft_only"),
    "block_share": FLAG,
    "coft": NO,
    "eps": ANY,
    "fan_in_fan_out": FLAG,
    "init_weights": ANY,
    "module_dropout": only(0, 0.0),  # OFT here has none
    "num_cayley_neumann_terms": only(5),
    "oft_block_size": COUNT,
    "r": COUNT,
    "use_cayley_neumann": only(True, False),
}


def _read(entry: Entry) -> Method:
    config, neumann = entry.config, entry.config["use_cayley_neumann"]
    # The library changes a block that does not divide the layer, but not its config.
    *_, numbers = entry.shapes.get("oft_R.weight") or (1,)
    release = re.match(r"(\d+)\.(\d+)", config["peft_version"])
    if neumann and (release is None or tuple(map(int, release.groups())) < (0, 18)):
        raise ValueError(
            "use_cayley_neumann: expected peft_version 0.18 or newer, found "
            f"{config['peft_version']!r}; earlier ones have another series"
        )
    return OFT(
        block=(1 + isqrt(1 + 8 * numbers)) // 2,
        neumann=neumann,
        share=config["block_share"],
    )


def _tensors(method: OFT, layer: Layer) -> dict[str, Tensor]:
    numbers = method.block * (method.block - 1) // 2
    return {"r": Tensor("oft_R.weight", (method.count(layer) // numbers, numbers))}


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    return {
        "r": 0,
        "oft_block_size": uniform(methods, "block"),
        "use_cayley_neumann": uniform(methods, "neumann"),
        "block_share": uniform(methods, "share"),
        # The first release with this series; the library looks for it.
        "peft_version": "0.18.0",
    }


# Its blocks on a convolution run over another order of the window.
CODEC = Codec("OFT", ("dense",), _FIELDS, _read, _tensors, _write)
