"""What a run trains on: one file per family of tasks, each with the same functions.

`outline(config)` says all that follows from the configuration alone: model, loss,
metric, sizes; of your own data, also what checkpoint and classes say. `base(config,
outline)` reads or makes the frozen weights, `data(config, choose)` reads the examples,
and `count(config)` is how many there are to train on, None where none are there.
"""

from __future__ import annotations

from typing import Any

from experiments.arguments import known
from experiments.tasks import (
    control,
    diffusion,
    digits,
    dreambooth,
    elevater,
    glue,
    images,
    llm,
    own_images,
    own_text,
    shots,
)

FAMILIES: dict[str, Any] = {
    "control": control,
    "diffusion": diffusion,
    "digits": digits,
    "dreambooth": dreambooth,
    "elevater": elevater,
    "glue": glue,
    "images": images,
    "llm": llm,
    "own_images": own_images,
    "own_text": own_text,
    "shots": shots,
}


def family(config: Any) -> Any:
    """Return the module of the configuration's family of tasks."""
    return FAMILIES[known(config.family, FAMILIES, "family")]
