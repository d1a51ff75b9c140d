"""What a run leaves to look at: images that it got wrong, and how long its tokens are.

Both are of the first test images. The length of a token is that of its vector after a
layer; with adapters it shows where they work, and tokens of outliers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from experiments.kept import Kept
from experiments.run import Run
from experiments.tasks.task import take
from experiments.workdir import MISTAKES, RunFolder
from peftjax import storage
from peftjax.parallel.distributed import led

LOOKED, WRONG, MEASURED = 256, 8, 32  # test images; of them shown; of them measured
LAYER = re.compile(r"(?:.*/)?(?:blocks|layers)(?:_(\d+))?/__call__")


def leave(one: Run, folder: RunFolder, found: Kept) -> dict[str, Any]:
    """Leave `mistakes.npz`; return the `token_lengths` of base and adapted model."""
    test: Any = one.data.test
    split = take(test, np.arange(min(LOOKED, len(test["label"]))))
    outputs = one.outputs(found.adapters, split, found.collections)
    arrays = mistakes(split, outputs, one.data.classes)
    folder.own(MISTAKES)

    def write() -> None:
        with storage.replacing(folder.path / MISTAKES) as new, new.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)

    led(write)
    batch = {name: column[:MEASURED] for name, column in split.items()}
    base = {**one.base, **found.collections}

    def adapted(*args: Any, **kwargs: Any) -> Any:
        return one.peft.apply(base, found.adapters, *args, **kwargs)

    def plain(*args: Any, **kwargs: Any) -> Any:
        return one.outline.model.apply(one.base, *args, **kwargs)

    calls = {"before": plain, "after": adapted}
    lengths = {
        x: token_lengths(one.outline.outputs, f, batch) for x, f in calls.items()
    }
    return {"token_lengths": lengths} if lengths["before"] else {}


def mistakes(
    split: Mapping[str, Any], outputs: np.ndarray, classes: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Return the first images that were classified wrongly, labels and answers.

    These are names where there are any.
    """
    answers, labels = outputs.argmax(-1), np.asarray(split["label"])
    rows = np.flatnonzero(answers != labels)[:WRONG]
    images = np.asarray(split["image"][rows])
    names = np.array(classes) if classes else np.arange(outputs.shape[-1])
    told = {"labels": names[labels[rows]], "answers": names[answers[rows]]}
    return {"images": images, **told}


def token_lengths(
    outputs: Callable[..., Any], apply: Callable[..., Any], batch: Mapping[str, Any]
) -> list[float]:
    """Return the mean length of a token after each layer; none of a model without.

    Args:
        outputs: of a batch, as `make_eval` takes it.
        apply: what it calls, a Linen model's or an adapted one's.
        batch: what the mean is over.
    """

    def run(batch: Mapping[str, Any]) -> list[jax.Array]:
        seen: dict[str, Any] = {}

        def call(*args: Any, **kwargs: Any) -> Any:
            wanted = {"capture_intermediates": True, "mutable": ["intermediates"]}
            found, state = apply(*args, **kwargs, **wanted)
            seen.update(flatten_dict(state["intermediates"], sep="/"))
            return found

        outputs(call, batch)
        layers: dict[int, jax.Array] = {}
        for name, found in seen.items():
            if match := LAYER.fullmatch(name):
                x = jax.tree.leaves(found)[0]
                stacked = match[1] is None  # scanned layers
                layers[int(match[1] or 0)] = x if stacked else x[None]
        tokens = [layers[number].astype(jnp.float32) for number in sorted(layers)]
        return [
            jnp.linalg.norm(x, axis=-1).mean((*range(1, x.ndim - 1),)) for x in tokens
        ]

    return [float(length) for part in jax.jit(run)(batch) for length in part]
