"""The two halves of a task: what the configuration says, and what the files hold."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from peftjax.data.pipeline import Augment
from peftjax.models.files import CheckpointError

Score = Callable[[np.ndarray, np.ndarray], dict[str, float]]


class UnreadableData(ValueError):
    """The examples of a task cannot be used; the message says which and why."""


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Raise UnreadableData, with `where`, for a ValueError of a reader in the block."""
    try:
        yield
    except ValueError as error:  # of a damaged file, a label out of range, ...
        raise UnreadableData(f"{where}: {error}") from error


@dataclass(frozen=True)
class Outline:
    """What is known of a task before any file is read.

    Attributes:
        model: the module.
        example: arguments of one call of the model, arrays or `ShapeDtypeStruct`.
        loss: of a batch, as `make_step` takes it.
        outputs: of a batch, as `make_eval` takes it; it returns `{"outputs": ...}`.
        score: labels and outputs to all metrics, as fractions.
        metric: the one of them that a table shows.
        examples: published number of training examples.
        note: what a reader of the table has to know, such as the split reported.
        entry: path of a parameter that is added to the input of the first block; see
            `experiments.measure`.
        examine: of a run and its adapters (None: of the base), further scores that are
            taken once, at the end; None where there are none. `watch=f` is told how
            many answers there are.
        picture: of labels and outputs, where these are pictures: a uint8 `[H, W, C]`
            that shows some.
        mutable: collections of the model that training moves, whose updates the loss
            returns too.
        augment: of a training image, as `train_batches` takes it; None for none.
    """

    model: nn.Module
    example: tuple[Any, ...]
    loss: Callable[..., jax.Array]
    outputs: Callable[..., dict[str, jax.Array]]
    score: Score
    metric: str
    examples: int
    note: str
    entry: str = "pos_embed"
    examine: Callable[..., dict[str, float]] | None = None
    picture: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    mutable: tuple[str, ...] = ()
    augment: Augment | None = None

    def abstract(self) -> Any:
        """Return the variables' shapes and dtypes; nothing is computed."""
        return abstract(self.model, self.example)


@functools.lru_cache(maxsize=16)  # tracing a model takes longer than a step
def abstract(model: nn.Module, example: tuple[Any, ...]) -> Any:
    """Return the shapes and dtypes of a model's variables."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(model.init, key, *example)


@dataclass(frozen=True)
class Data:
    """The examples of a task, as `peftjax.data.pipeline` takes them.

    Attributes:
        train: what is trained on.
        test: what the table reports; empty while hyperparameters are chosen.
        validation: what choices are made on; None where none are made.
        fingerprints: of every split read, for the result.
        classes: names, in the order of the labels; empty where the files have none.
    """

    train: Mapping[str, Any]
    test: Mapping[str, Any] | None
    validation: Mapping[str, Any] | None
    fingerprints: tuple[dict[str, Any], ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def lengths(self) -> np.ndarray | None:
        """Tokens of each training example; None where all are of one size."""
        column = self.train.get("input_ids")
        return getattr(column, "lengths", None)


def checkpoint(config: Any) -> str:
    """Return `paths.model`.

    Raises:
        CheckpointError: it is empty.
    """
    if not config.paths.model:
        raise CheckpointError(
            f"{config.name}: no weights; give --config.paths.model=FOLDER"
        )
    return str(config.paths.model)


def with_new_head(variables: Any, name: str = "head") -> Any:
    """Return the variables with a head of zeros: the classes are others now."""
    params = variables["params"]
    head = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params[name])
    return {**variables, "params": {**params, name: head}}


def take(arrays: Mapping[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """Return some examples of a split."""
    return {
        name: column.select(rows) if hasattr(column, "select") else column[rows]
        for name, column in arrays.items()
    }


def held_out(examples: int, share: float, seed: int = 0) -> tuple[Any, Any]:
    """Return the rows to train on and the rows held out, drawn once per seed."""
    rows = np.random.default_rng(seed).permutation(examples)
    count = round(share * examples)
    return np.sort(rows[count:]), np.sort(rows[:count])
