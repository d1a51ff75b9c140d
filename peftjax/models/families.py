"""The families of models, and which of them a file or a model belongs to.

A new one is a folder (`config`, `model` and `family`, its record) and a line in
`FAMILIES`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from peftjax.models.bert.family import BERT
from peftjax.models.clip.family import CLIP, CLIP_TEXT
from peftjax.models.config_json import Json
from peftjax.models.deberta.family import DEBERTA
from peftjax.models.dinov2.family import DINOV2
from peftjax.models.family import Checkpoint, Family, Head
from peftjax.models.files import CheckpointError, Tensor
from peftjax.models.llama.family import LLAMA
from peftjax.models.t5.family import T5_FAMILY
from peftjax.models.unet.family import UNET
from peftjax.models.vae.family import VAE
from peftjax.models.vit.family import VIT

FAMILIES: tuple[Family, ...] = (
    *(BERT, DEBERTA, CLIP, CLIP_TEXT, LLAMA, T5_FAMILY, VIT, DINOV2),
    *(UNET, VAE),
)


def family_of(model: Any) -> Family:
    """Return the family that a model belongs to.

    Raises:
        ValueError: there is none.

    >>> from peftjax.models import ViT
    >>> family_of(ViT()).called
    ('vit',)
    """
    for family in FAMILIES:
        if type(model) is family.module:
            return family
    known = ", ".join(family.module.__name__ for family in FAMILIES)
    raise ValueError(
        f"{type(model).__name__} has no equal there; expected one of {known}. Put the "
        "tower of a ClipClassifier back into its Clip's variables"
    )


def is_seq2seq(model: Any) -> bool:
    """Return whether a model, of a family or not, is known to read a source.

    >>> from peftjax.models import T5, T5Config, ViT
    >>> is_seq2seq(T5(T5Config())), is_seq2seq(ViT())
    (True, False)
    """
    return any(type(model) is own.module and own.seq2seq for own in FAMILIES)


def recognise(config: Json, tensors: Mapping[str, Tensor]) -> tuple[Family, Checkpoint]:
    """Return the family that `config.json` names, or to which the tensors belong.

    Raises:
        CheckpointError: there is none, or the two disagree.
    """
    known = [(family, kind) for family in FAMILIES for kind in family.checkpoints]
    seen = [
        (family, kind)
        for family, kind in known
        if any(re.fullmatch(kind.mark, name) for name in tensors)
    ]
    look = " or ".join(kind.name for _, kind in seen) or "none of these"
    # Of diffusers' files the class is named.
    key = "_class_name" if "_class_name" in config else "model_type"
    named = config.get(key)
    for family, kind in seen:
        if kind.name == named or (named is None and kind.layout != "hf"):
            return family, kind
    if named is None:
        raise CheckpointError(
            "expected a config.json with model_type or _class_name beside the weights, "
            f"found {'one without' if config else 'none'}; the tensors look like {look}"
        )
    names = ", ".join(kind.name for _, kind in known)
    raise CheckpointError(
        f"config.json: {key} {named!r}, tensors that look like {look}; expected "
        f"both to be of one family of {names}"
    )


def file_head(
    family: Family, kind: Checkpoint, config: Json, tensors: Mapping[str, Tensor]
) -> Head:
    """Return the head that a checkpoint has: None, a number of classes, ...

    Raises:
        CheckpointError: it is the head of a task that the models here do not have.
    """
    name, axis = kind.head
    if "qa_outputs.weight" in tensors:
        raise CheckpointError(
            "qa_outputs.weight: a head for answers in a text; expected one for "
            'whole sequences: give head=number of classes for a new one, or head="none"'
        )
    if name not in tensors:
        return kind.other_head(config, tensors.keys())
    architecture = str(config.get("architectures") or "")
    if kind.layout == "hf" and "TokenClassification" in architecture:
        raise CheckpointError(
            f"config.json: architectures {architecture}: expected a head for whole "
            "sequences or images; give head=number of classes for a new one, or "
            'head="none"'
        )
    for refused in kind.refused.keys() & tensors.keys():
        raise CheckpointError(
            f"{refused}: {kind.refused[refused]}; give head=number of classes for a "
            'new head, or head="none"'
        )
    shape = tensors[name].shape
    if len(shape) != 2 or 0 in shape:
        raise CheckpointError(f"{name}: expected two axes, found {shape}")
    one = shape[axis] == 1 and "regression" in family.heads.named
    return "regression" if one else shape[axis]
