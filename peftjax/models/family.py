"""What a family of models says of itself.

Loading, saving, `peftjax.hub` and `peftjax.presets` read these records, and ask for no
model's class. A family lies in a folder of its own; `peftjax.models.families` lists it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from peftjax.models.config_json import Json
from peftjax.models.files import STEMS
from peftjax.models.names import Layout, Named, Source

Head = int | Literal["none", "regression", "lm"] | None
Model = nn.Module
Shapes = Mapping[str, tuple[int, ...]]

# Matches nothing.
NOTHING = r"(?!)"


def text_example(model: Model, channels: int) -> tuple[jax.ShapeDtypeStruct]:
    """Return what one call of a model of texts takes."""
    return (jax.ShapeDtypeStruct((1, 2), jnp.int32),)


@dataclass(frozen=True)
class Checkpoint:
    """A kind of checkpoint of a family. Patterns match whole names.

    Attributes:
        name: its `model_type`, what `diffusers` calls its class, or people call it.
        mark: a tensor by which it is known.
        build: the headless model from `config.json` and the tensors' shapes.
        head: the tensor whose outputs are the classes, and the axis of these.
        heads: tensors of any task head; given up for a new one.
        unused: tensors that have no part in what our model computes: buffers and the
            heads of pretraining.
        new: parameters of ours that a new head draws.
        layout: of its names.
        prefix: what torch's names begin with where the model has a head.
        architecture: how the names of the original's classes begin.
        other_head: the head of a file that has no tensor `head`, by `config.json` and
            the tensors' names.
        refused: tensors of a head that the model here cannot have, and why.
        stem: how the names of its weight files begin, one of `files.STEMS`.
        copies: tensors that repeat another, by name; it may stand in for the other.
    """

    name: str
    mark: str
    build: Callable[[Json, Shapes], Any]
    head: tuple[str, int]
    heads: str
    new: str
    unused: str = NOTHING
    layout: Layout = "hf"
    prefix: str = ""
    architecture: str = ""
    other_head: Callable[[Json, Collection[str]], Head] = lambda config, names: None
    refused: Mapping[str, str] = field(default_factory=dict)
    stem: str = STEMS[0]
    copies: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Heads:
    """The heads that the models of a family may have, and the field that says which.

    Attributes:
        named: heads other than a number of classes.
        attribute: the module's field; None: there is no head.
        absent: its value without a head.
        task: how the name of the original's class ends where there are classes.
        instead: what to do where there is no head.
    """

    named: tuple[str, ...] = ("none", "regression")
    attribute: str | None = "head"
    absent: Any = None
    task: str = "ForSequenceClassification"
    instead: str = ""


@dataclass(frozen=True)
class Placements:
    """Where adapters go; paths are regular expressions.

    Attributes:
        parts: by what a layer's part is (`"query"`, `"key"`, `"value"`, `"output"`,
            `"gate"`, `"up"`, `"down"`): its path in the layer.
        stack: the path of the layers, without number.
        patches: the path of what cuts images into patches, if it is to be adapted.
        head: the path of the task head; None: there is none.
        prefix: the path of the places of a prefix (`models.prefix`); None: none.
        like: for whose papers' choice of parts it counts.
    """

    parts: Mapping[str, str]
    stack: str = "layers"
    patches: str | None = None
    head: str | None = "classifier"
    prefix: str | None = None
    like: Literal["encoder", "llama", "vit", "unet"] = "encoder"


@dataclass(frozen=True)
class Family:
    """A family of models. Callables take the model first.

    Attributes:
        module: the class of its models.
        called: names for presets.
        checkpoints: the kinds of checkpoint that are read.
        names: by layout, where every parameter of the unrolled model lies, given what
            the names begin with; some need not exist, as biases that the model does not
            have. Modules of torch in memory may have other names than checkpoints have:
            `"hf5"` are those of transformers 5. Newest first.
        examples: what one call takes, given the channels of images where the model's
            fields do not tell: shapes and dtypes.
        write_config: the `config.json` that `checkpoints` reads, given the same.
        placements: where adapters go.
        heads: the heads that it may have.
        tokenizer: the file of its tokenizer; None: it reads no text.
        depth: the number of its layers.
        written_as: the kind of checkpoint that a model is written as.
        tied: the path of a table that is the output layer as well.
        last: the path of the module that returns the last hidden state; None: none that
            is outside of loops.
        resize: model and parameters for another image size.
        seq2seq: its language model continues a target, beside the source that it reads.
    """

    module: type[nn.Module]
    called: tuple[str, ...]
    checkpoints: tuple[Checkpoint, ...]
    names: Mapping[Layout, Callable[[Any, str], Named]]
    examples: Callable[[Any, int], tuple[Any, ...]]
    write_config: Callable[[Any, int], dict[str, Any]]
    placements: Placements
    heads: Heads = Heads()
    tokenizer: Literal["spm.model", "tokenizer.json"] | None = None
    depth: Callable[[Any], int] = lambda model: model.config.num_hidden_layers
    written_as: Callable[[Any], Checkpoint] | None = None
    tied: Callable[[Any], str | None] = lambda model: None
    last: str | None = None
    resize: Callable[[Any, Any, Any], tuple[Any, Any]] | None = None
    seq2seq: bool = False

    @property
    def torch_layouts(self) -> list[Layout]:
        """The layouts of torch's modules, the newest first."""
        return [layout for layout in self.names if layout != "npz"]

    def sources(
        self, model: Any, layout: Layout = "hf", *, prefix: bool = True
    ) -> dict[str, Source]:
        """Return where every parameter of the unrolled model lies, by our path.

        Args:
            model: the model.
            layout: of the names; one that the family does not have is `"hf"`.
            prefix: names begin with the family's name, as in a model with a head.
        """
        names = self.names.get(layout) or self.names["hf"]
        return dict(names(model, self.prefix(model) if prefix else ""))

    def kind(self, model: Any) -> Checkpoint:
        """Return the kind of checkpoint that a model is written as."""
        return self.written_as(model) if self.written_as else self.checkpoints[0]

    def prefix(self, model: Any) -> str:
        """Return what the original's names begin with where the model has a head."""
        return self.kind(model).prefix

    def head(self, model: Any) -> Any:
        """Return the model's head; None where it has none."""
        heads = self.heads
        found = getattr(model, heads.attribute) if heads.attribute else heads.absent
        return None if found == heads.absent else found

    def with_head(self, model: Any, head: Head) -> Any:
        """Return the model with that head.

        Raises:
            ValueError: the model cannot have it.
        """
        heads = self.heads
        if heads.attribute is None:
            if head not in (None, "none"):
                raise ValueError(
                    f"head: a {type(model).__name__} has none, found {head!r}; "
                    f"{heads.instead}"
                )
            return model
        count = isinstance(head, int) and not isinstance(head, bool) and head >= 1
        if not count and head is not None and head not in heads.named:
            raise ValueError(
                f"head: expected a number of classes or one of "
                f"{', '.join(heads.named)} for a {type(model).__name__}, found {head!r}"
            )
        chosen = heads.absent if head in (None, "none") else head
        return model.clone(**{heads.attribute: chosen})
