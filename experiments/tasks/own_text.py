"""Your own labelled texts, a CSV, TSV, JSON Lines or parquet file, by an encoder.

`paths.data` holds the table under the name of the task, `paths.model` is the folder of
the checkpoint and its tokenizer. `data.text` names one or two columns, `data.label` the
classes. The rows are split by `data.split_seed` into training, validation and test
examples, eight, one and one in ten of each class.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import peftjax as pj
from experiments.meshes import split_of
from experiments.preemption import Stop
from experiments.tasks.glue import class_loss, outputs
from experiments.tasks.images import score
from experiments.tasks.task import Data, Outline, checkpoint, reading, take
from peftjax import storage
from peftjax.data import splits, tables, tokenizer
from peftjax.data.fingerprint import fingerprint


def outline(config: Any) -> Outline:
    """Return what follows from the configuration, the checkpoint and the classes."""
    model, _ = _loaded(config)
    tokens = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    return Outline(
        model=model,
        example=(tokens,) * 3,
        loss=class_loss,
        outputs=outputs,
        score=score,
        metric="accuracy",
        examples=count(config),
        note="test split",
        entry="embeddings/norm/bias",
    )


def base(config: Any, outline: Outline, stop: Stop | None = None) -> Any:
    """Return the pretrained weights, with the head drawn from the run's seed."""
    return _loaded(config)[1]


def data(config: Any, choose: bool) -> Data:
    found, settings = _read(config), config.data
    tokens = tokenizer.load_tokenizer(checkpoint(config))
    encoded = tokenizer.encode(tokens, found.texts, settings.max_length)
    pad, buckets = tokenizer.pad_id(tokens), tuple(settings.buckets)
    arrays = {**tokenizer.columns(encoded, pad, buckets), "label": found.labels}
    rows = _rows(config)
    texts = [[text.encode() for text in row] for row in zip(*found.texts)]
    parts, prints = {}, []
    for name, part in rows.items():
        if name == "test" and choose:
            continue
        parts[name] = take(arrays, part)
        facts = fingerprint(
            (texts[row] for row in part), found.labels[part], len(found.classes)
        )
        prints.append({"dataset": config.task, "split": name, **facts})
    return Data(parts["train"], parts.get("test"), parts["validation"], tuple(prints))


def count(config: Any) -> int:
    return len(_rows(config)["train"])


def _rows(config: Any) -> dict[str, np.ndarray]:
    found = _read(config)
    with reading(f"{config.name}: {config.task}"):
        return splits.by_seed(found.labels, found.classes, config.data.split_seed)


def _read(config: Any) -> tables.Texts:
    columns = config.data.text
    text = (columns,) if isinstance(columns, str) else tuple(columns)
    with reading(config.name):
        file = storage.local(tables.find(config.paths.data, config.task))
        return _table(file, file.stat().st_mtime_ns, text, config.data.label)


@functools.lru_cache(maxsize=1)  # outline, data and base of one run
def _table(file: Any, _: int, text: tuple[str, ...], label: str) -> tables.Texts:
    return tables.read(file, text, label)


def _loaded(config: Any) -> Any:
    options = tuple(sorted((config.get("model") or {}).items()))
    classes = len(_read(config).classes)
    place = checkpoint(config)
    return _load(place, classes, config.seed, split_of(config), options)


@functools.lru_cache(maxsize=1)
def _load(path: str, classes: int, seed: int, mesh: Any, options: tuple) -> Any:
    key = jax.random.key(seed)
    return pj.models.load(path, head=classes, mesh=mesh, key=key, **dict(options))
