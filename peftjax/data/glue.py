"""The nine tasks of GLUE, under their TFDS names, with the published splits.

Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding", arXiv 1804.07461. Sizes are those of TFDS `glue/<task>:2.0.0`; GLUE
withholds the test labels (-1).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from peftjax.data import source, tokenizer
from peftjax.data.errors import DataError
from peftjax.data.fingerprint import fingerprint
from peftjax.data.ragged import Ragged
from peftjax.data.token_cache import Cached, cached
from peftjax.errors import unknown


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        text: names of its one or two text columns.
        classes: number of classes; 0 for a score (STS-B, from 0 to 5).
        sizes: published number of examples by split.
    """

    text: tuple[str, ...]
    classes: int
    sizes: dict[str, int]

    @property
    def validation(self) -> tuple[str, ...]:
        """The splits that dev-set tables report: two for MNLI, one for the others."""
        return tuple(split for split in self.sizes if split.startswith("validation"))


def _sizes(train: int, validation: int, test: int) -> dict[str, int]:
    return {"train": train, "validation": validation, "test": test}


_MNLI = {
    "train": 392_702,
    "validation_matched": 9_815,
    "validation_mismatched": 9_832,
    "test_matched": 9_796,
    "test_mismatched": 9_847,
}
_PAIR = ("sentence1", "sentence2")

TASKS = {
    "cola": Task(("sentence",), 2, _sizes(8_551, 1_043, 1_063)),
    "sst2": Task(("sentence",), 2, _sizes(67_349, 872, 1_821)),
    "mrpc": Task(_PAIR, 2, _sizes(3_668, 408, 1_725)),
    "stsb": Task(_PAIR, 0, _sizes(5_749, 1_500, 1_379)),
    "qqp": Task(("question1", "question2"), 2, _sizes(363_846, 40_430, 390_965)),
    "mnli": Task(("premise", "hypothesis"), 3, _MNLI),
    "qnli": Task(("question", "sentence"), 2, _sizes(104_743, 5_463, 5_463)),
    "rte": Task(_PAIR, 2, _sizes(2_490, 277, 3_000)),
    "wnli": Task(_PAIR, 2, _sizes(635, 71, 146)),
}


class Examples(NamedTuple):
    """One split, in the order of GLUE's own files.

    Attributes:
        texts: one list of strings per text column.
        labels: `[N]`, int32 (-1 where withheld); float32 for STS-B.
        idx: `[N]`, int32, GLUE's row numbers.
    """

    texts: tuple[list[str], ...]
    labels: np.ndarray
    idx: np.ndarray


class Tokenised(NamedTuple):
    """One split, ready for `peftjax.data.pipeline`.

    Attributes:
        arrays: `input_ids`, `attention_mask`, `token_type_ids` and `label`; a batch of
            the first three is `[B, L]`, int32, with L one of the buckets.
        fingerprint: what to store with a result; see `describe`.
    """

    arrays: dict[str, Ragged | np.ndarray]
    fingerprint: dict[str, Any]


def get_task(name: str) -> Task:
    """Return a task.

    Raises:
        ValueError: there is none of this name; the message holds the nearest ones.
    """
    if name not in TASKS:
        raise unknown("GLUE task", name, TASKS)
    return TASKS[name]


def load(
    task: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
) -> Examples:
    """Read one split.

    Args:
        task: `"cola"`, `"sst2"`, ..., see `TASKS`.
        split: `"train"`, `"validation"` or `"test"`; MNLI has two of the latter each.
        data_dir: TFDS's data folder.
        download: let TFDS fetch what is absent.

    Raises:
        ValueError: unknown task or split, a label out of range, text that is not UTF-8.
        MissingData: the split is not in `data_dir`.
    """
    return _read(task, _open(task, split, data_dir, download))


def tokenised(
    task: str,
    split: str,
    model: str | os.PathLike[str],
    max_length: int,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    buckets: Sequence[int] = tokenizer.BUCKETS,
    cache_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> Tokenised:
    """Read one split as the columns a text model takes.

    Args:
        task: as in `load`.
        split: as in `load`.
        model: the model's folder with `tokenizer.json`, or that file.
        max_length: tokens per example at most; see `tokenizer.encode`.
        data_dir: TFDS's data folder.
        buckets: lengths that batches are padded to.
        cache_dir: where tokens are kept, so that a split is tokenised once. An entry is
            found by the content of the records and of the tokenizer, never by date.
        download: let TFDS fetch what is absent.

    Raises:
        ValueError: as `load` and `tokenizer.load_tokenizer`.
        MissingData: as `load`.
    """
    opened = _open(task, split, data_dir, download)
    tokens = tokenizer.load_tokenizer(model)

    def compute() -> Cached:
        examples = _read(task, opened)
        encoded = tokenizer.encode(tokens, examples.texts, max_length)
        return Cached(encoded, examples.labels, describe(task, split, examples))

    file = tokenizer.tokenizer_file(model)
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    key = (opened.digest(), content, task, split, max_length)
    entry = cached(compute, cache_dir, key)
    arrays = tokenizer.columns(entry.tokens, tokenizer.pad_id(tokens), buckets)
    return Tokenised({**arrays, "label": entry.labels}, entry.fingerprint)


def describe(task: str, split: str, examples: Examples) -> dict[str, Any]:
    """Return the fingerprint of a split, its name and the published size beside it."""
    rows = ([text.encode() for text in row] for row in zip(*examples.texts))
    result = fingerprint(rows, examples.labels, get_task(task).classes)
    name = {"dataset": f"glue/{task}", "split": split}
    return name | result | {"published": get_task(task).sizes[split]}


def _open(task: str, split: str, data_dir: Any, download: bool) -> source.Source:
    known = get_task(task).sizes
    if split not in known:
        raise unknown(f"split of glue/{task}", split, known)
    opened = source.open_split(f"glue/{task}", split, data_dir, download=download)
    source.check_size(opened.where, len(opened.rows), known[split])
    return opened


def _read(task: str, opened: source.Source) -> Examples:
    spec = get_task(task)
    fields = {name: [] for name in ("idx", "label", *spec.text)}
    for row in opened:
        for name, values in fields.items():
            values.append(row[name])
    idx = np.array(fields["idx"], np.int32)
    labels = np.array(fields["label"], np.int32 if spec.classes else np.float32)
    # TFDS shuffles as it writes; GLUE's own order does not depend on its version.
    order = np.argsort(idx, kind="stable")
    try:
        texts = tuple([fields[name][i].decode() for i in order] for name in spec.text)
    except UnicodeDecodeError as error:
        raise DataError(f"{opened.where}: text that is not UTF-8 ({error})") from error
    # GLUE withholds labels of whole splits; a single -1 is an error.
    if not np.all(labels == -1):
        source.check_labels(
            opened.where, labels, 0, spec.classes - 1 if spec.classes else 5
        )
    return Examples(texts, labels[order], idx[order])
