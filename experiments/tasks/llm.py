"""Instruction tuning of a language model; examined by answers or choices at the end.

Settings with `model_type="t5"` are of a T5, whose rows are taken apart (`seq2seq`).
`loss` is over the tokens that are learned. `exam` says what the adapters of the last
step are examined by: GSM8K's exact match, MMLU's or BBH's choices.
"""

from __future__ import annotations

import functools
from math import exp
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import peftjax as pj
from experiments.checks import UnfitSettings
from experiments.meshes import split_of
from experiments.preemption import Stop
from experiments.tasks import llm_data, llm_exam, seq2seq
from experiments.tasks.task import Data, Outline, held_out
from peftjax.data.errors import DataError
from peftjax.models import T5, Llama, LlamaConfig, Rope, T5Config
from peftjax.models.files import CheckpointError
from peftjax.models.lm_loss import lm_losses


def outline(config: ConfigDict) -> Outline:
    """Return what follows from the configuration alone.

    Raises:
        UnfitSettings: of a selection other than the last step's: answers are too slow
            to be looked at during training; or a T5 of packed rows.
    """
    if config.selection != "last":
        raise UnfitSettings(
            f"{config.name}: selection={config.selection!r}: expected 'last'"
        )
    chosen, tokens = model(config), jax.ShapeDtypeStruct((1, 16), jnp.int32)
    own: dict[str, Any] = {
        "example": (tokens,),
        "loss": loss,
        "outputs": outputs,
        "entry": "embed_tokens/embedding",
    }
    if isinstance(chosen, T5):
        if config.data.pack:
            raise UnfitSettings(
                f"{config.name}: data.pack={config.data.pack}: expected 0: a T5 does "
                "not tell the texts of a row apart"
            )
        own = {**_SEQ2SEQ, "example": (tokens, tokens, tokens)}
    return Outline(
        model=chosen,
        score=score,
        metric=llm_exam.METRICS.get(config.exam.kind, "loss"),
        examples=config.data.examples,
        note=llm_exam.NOTES.get(config.exam.kind, "held-out loss"),
        examine=functools.partial(llm_exam.examine, config),
        **own,
    )


def model(config: ConfigDict) -> Llama | T5:
    """Return the module that the configuration describes."""
    settings, own = {**config.model.settings}, config.model
    fields = {"scan_layers": own.scan_layers, "remat": own.remat}
    fields["dtype"] = jnp.dtype(own.dtype)
    if settings.get("model_type") == "t5":
        del settings["model_type"]
        return T5(T5Config(**settings), **fields)
    theta = settings.pop("rope_theta", Rope.theta)
    return Llama(LlamaConfig(rope=Rope(theta=theta), **settings), **fields)


def base(config: ConfigDict, outline: Outline, stop: Stop | None = None) -> Any:
    """Return the pretrained weights.

    Raises:
        CheckpointError: the weights are of another architecture than the
            configuration's.
    """
    folder = llm_data.model_folder(config)
    own = config.model
    found, variables = pj.models.load(
        folder,
        head="lm",
        dtype=own.dtype,
        mesh=split_of(config),
        scan_layers=own.scan_layers,
        remat=own.remat,
    )
    if found != outline.model:
        raise CheckpointError(
            f"{folder}: not the model of {config.name}: expected {outline.model.config}"
            f", found {found.config}; set --config.model.settings"
        )
    return variables


def data(config: ConfigDict, choose: bool) -> Data:
    settings, folder = config.data, config.paths.data
    own = llm_data.codec(
        str(llm_data.model_folder(config)), settings.template, settings.eos
    )
    rows = llm_data.rows(settings, folder, "train")
    kept, held = held_out(len(rows), settings.held_out)
    parts = {"train": [rows[i] for i in kept]}
    if len(held):
        parts["validation"] = [rows[i] for i in held]
    if settings.train_examples:
        parts["train"] = parts["train"][: settings.train_examples]
    if settings.validation_examples and "validation" in parts:
        parts["validation"] = parts["validation"][: settings.validation_examples]
    if "test" in settings.files and not choose:
        parts["test"] = llm_data.rows(settings, folder, "test")
        parts["test"] = parts["test"][: settings.test_examples or None]
    chats = {
        name: llm_data.encoded(settings, own, part) for name, part in parts.items()
    }
    columns = {
        name: llm_data.columns(settings, own, part, name == "train")
        for name, part in chats.items()
    }
    prints = tuple(llm_data.fingerprint(*part) for part in chats.items())
    held = columns.get("validation")
    # Without a test file what is held out is reported.
    test = None if choose else columns.get("test", held)
    if held is None and (choose or test is None):
        raise DataError(
            f"data.held_out={settings.held_out} of {len(rows)} examples leaves none to "
            "choose on or to report: expected more"
        )
    return Data(columns["train"], test, held, prints)


def count(config: ConfigDict) -> int | None:
    """Return the rows to train on; None where they are packed, or not there."""
    file = Path(config.paths.data) / config.data.files["train"]
    if config.data.pack or not file.is_file():
        return None
    rows = llm_data.rows(config.data, config.paths.data, "train")
    kept = len(held_out(len(rows), config.data.held_out)[0])
    return min(kept, config.data.train_examples or kept)


def _logits(apply, batch, **options):
    return apply(batch["input_ids"], segment_ids=batch["segment_ids"], **options)


def loss(apply, batch, key, logits=_logits):
    """Return the cross-entropy of each token; `token_mask` says which count."""
    found = logits(apply, batch, train=True, rngs={"dropout": key})
    return lm_losses(found, batch["input_ids"])[0]


def outputs(apply, batch, logits=_logits):
    """Return of each row the summed loss, the tokens learned and those foreseen."""
    ids, mask = batch["input_ids"], batch["token_mask"]
    found = logits(apply, batch)
    losses, weights = lm_losses(found, ids, mask)
    right = (found[:, :-1].argmax(-1) == ids[:, 1:]) * weights[:, 1:]
    rows = (losses.sum(1), weights.sum(1), right.sum(1))
    return {"outputs": jnp.stack(rows, axis=1)}


# Made once: programs are kept by their loss.
_SEQ2SEQ = {
    "loss": functools.partial(loss, logits=seq2seq.logits),
    "outputs": functools.partial(outputs, logits=seq2seq.logits),
    "entry": "shared/embedding",
}


def score(labels: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
    """Return loss, perplexity and accuracy of the tokens learned.

    >>> score(np.ones(1), np.array([[4.0, 4.0, 1.0]]))["token_accuracy"]
    0.25
    """
    total, tokens, right = np.asarray(outputs, np.float64).sum(0)
    mean = float(total / tokens)
    return {
        "loss": mean,
        "perplexity": exp(min(mean, 700.0)),
        "token_accuracy": float(right / tokens),
    }
