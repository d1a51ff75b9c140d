"""The kinds of checkpoint that are read: how to know each, and what it may hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from peftjax.models import vit_configs
from peftjax.models.bert import Bert
from peftjax.models.clip import Clip
from peftjax.models.clip_configs import read_clip
from peftjax.models.configs import Json, read_bert, read_llama
from peftjax.models.deberta import Deberta
from peftjax.models.deberta_configs import read_deberta
from peftjax.models.files import CheckpointError, Tensor
from peftjax.models.llama import Llama
from peftjax.models.names import Layout, Model
from peftjax.models.vit import ViT
from peftjax.models.vit_configs import Shapes

Head = int | Literal["none", "regression", "lm"] | None


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint. Patterns match whole names.

    Attributes:
        name: its `model_type`, or what people call it.
        mark: a tensor by which it is known.
        build: the headless model from `config.json` and the tensors' shapes.
        head: the tensor whose outputs are the classes, and the axis of these.
        heads: tensors of any task head; given up for a new one.
        unused: tensors that have no part in what our model computes: buffers and the
            heads of pretraining.
        new: parameters of ours that a new head draws.
        layout: as in `names.sources`.
    """

    name: str
    mark: str
    build: Callable[[Json, Shapes], Model]
    head: tuple[str, int]
    heads: str
    unused: str
    new: str
    layout: Layout = "hf"


_BUFFERS = r"(.*\.)?embeddings\.(position|token_type)_ids"

FAMILIES = (
    Family(
        "bert",
        mark=r"(bert\.)?embeddings\.word_embeddings\.weight",
        build=lambda config, shapes: Bert(read_bert(config, roberta=False)),
        head=("classifier.weight", 0),
        heads=r"(classifier|qa_outputs)\..*",
        unused=rf"{_BUFFERS}|cls\..*",
        new=r"(classifier|pooler)/.*",
    ),
    Family(
        "roberta",
        mark=r"(roberta\.)?embeddings\.word_embeddings\.weight",
        build=lambda config, shapes: Bert(read_bert(config, roberta=True)),
        head=("classifier.out_proj.weight", 0),
        heads=r"(classifier|qa_outputs)\..*",
        unused=rf"{_BUFFERS}|lm_head\..*|(roberta\.)?pooler\..*",
        new=r"classifier/.*",
    ),
    Family(
        "deberta-v2",
        mark=r"(deberta\.)?embeddings\.word_embeddings\.weight",
        build=lambda config, shapes: Deberta(read_deberta(config, shapes)),
        head=("classifier.weight", 0),
        heads=r"(classifier|qa_outputs)\..*",
        # Pretraining leaves absolute positions and two heads behind; the bare encoder
        # has no pooler, and one without relative positions no use for their norm.
        unused=rf"{_BUFFERS}|(cls|lm_predictions|mask_predictions|pooler)\..*|"
        r"(deberta\.)?(embeddings\.position_embeddings|encoder\.LayerNorm)\..*",
        new=r"(classifier|pooler)/.*",
    ),
    Family(
        "clip",
        mark=r"text_model\.embeddings\.token_embedding\.weight",
        build=lambda config, shapes: Clip(read_clip(config)),
        head=("classifier.weight", 0),
        heads=r"(?!)",
        unused=r"(text|vision)_model\.embeddings\.position_ids",
        new=r"(?!)",
    ),
    Family(
        "llama",
        mark=r"(model\.)?embed_tokens\.weight",
        build=lambda config, shapes: Llama(read_llama(config), head=None),
        head=("score.weight", 0),
        heads=r"(lm_head|score|qa_outputs)\..*",
        unused=r".*\.rotary_emb\.inv_freq|lm_head\.weight",
        new=r"score/.*",
    ),
    Family(
        "vit",
        mark=r"(vit\.)?embeddings\.patch_embeddings\.projection\.weight",
        build=vit_configs.read_hf,
        head=("classifier.weight", 0),
        heads=r"classifier\..*",
        unused=r"(vit\.)?(pooler\..*|embeddings\.mask_token)",
        new=r"head/.*",
    ),
    Family(
        "timm ViT",
        mark=r"patch_embed\.proj\.weight",
        build=vit_configs.read_timm,
        head=("head.weight", 0),
        heads=r"head\..*",
        unused=r"(?!)",
        new=r"head/.*",
        layout="timm",
    ),
    Family(
        "npz ViT",
        mark=r"Transformer/encoder_norm/scale",
        build=vit_configs.read_npz,
        head=("head/kernel", 1),
        heads=r"(head|pre_logits)/.*",
        unused=r"(?!)",
        new=r"head/.*",
        layout="npz",
    ),
)


def recognise(config: Json, tensors: Mapping[str, Tensor]) -> Family:
    """Return the family that `config.json` names, or to which the tensors belong.

    Raises:
        CheckpointError: there is none, or the two disagree.
    """
    seen = [
        family
        for family in FAMILIES
        if any(re.fullmatch(family.mark, name) for name in tensors)
    ]
    look = " or ".join(family.name for family in seen) or "none of these"
    kind = config.get("model_type")
    if kind is None:
        for family in seen:
            if family.layout != "hf":
                return family
        raise CheckpointError(
            "expected a config.json with model_type beside the weights, found "
            f"{'one without' if config else 'none'}; the tensors look like {look}"
        )
    for family in FAMILIES:
        if family.name == kind and family in seen:
            return family
    names = ", ".join(family.name for family in FAMILIES)
    raise CheckpointError(
        f"config.json: model_type {kind!r}, tensors that look like {look}; expected "
        f"both to be of one family of {names}"
    )


def file_head(family: Family, config: Json, tensors: Mapping[str, Tensor]) -> Head:
    """Return the head that a checkpoint has: None, a number of classes, ...

    Raises:
        CheckpointError: it is the head of a task that the models here do not have.
    """
    name, axis = family.head
    if name not in tensors:
        return "lm" if _is_language_model(family, config, tensors) else None
    architecture = str(config.get("architectures") or "")
    if family.layout == "hf" and "TokenClassification" in architecture:
        raise CheckpointError(
            f"config.json: architectures {architecture}: expected a head for whole "
            "sequences or images; give head=number of classes for a new one, or "
            'head="none"'
        )
    if "pre_logits/kernel" in tensors:
        raise CheckpointError(
            "pre_logits/kernel: this file's own head needs a layer that the ViT here "
            "does not have (nor do the papers' models); give head=number of classes "
            'for a new head, or head="none"'
        )
    return _outputs(tensors[name], axis, family)


def _is_language_model(
    family: Family, config: Json, tensors: Mapping[str, Tensor]
) -> bool:
    tied = config.get("tie_word_embeddings") and "model.embed_tokens.weight" in tensors
    return family.name == "llama" and bool(tied or "lm_head.weight" in tensors)


def with_head(model: Model, head: Head) -> Model:
    """Return the model with that head.

    Raises:
        ValueError: the model cannot have it.
    """
    if isinstance(model, Clip):
        if head not in (None, "none"):
            raise ValueError(
                f"head: a Clip has none, found {head!r}; image_classifier makes one "
                "from the embeddings of texts"
            )
        return model
    count = isinstance(head, int) and not isinstance(head, bool) and head >= 1
    names = ["none"] if isinstance(model, ViT) else ["none", "regression"]
    names += ["lm"] if isinstance(model, Llama) else []
    if not count and head is not None and head not in names:
        raise ValueError(
            f"head: expected a number of classes or one of {', '.join(names)} for a "
            f"{type(model).__name__}, found {head!r}"
        )
    chosen: Any = None if head == "none" else head
    if isinstance(model, ViT):
        return model.clone(num_classes=chosen or 0)
    return model.clone(head=chosen)


def _outputs(tensor: Tensor, axis: int, family: Family) -> Head:
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise CheckpointError(
            f"{family.head[0]}: expected two axes, found {tensor.shape}"
        )
    outputs = tensor.shape[axis]
    one = outputs == 1 and family.name in ("bert", "roberta", "deberta-v2", "llama")
    return "regression" if one else outputs
