"""The optimizer of the adapters, built from optax."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import optax

from peftjax.core.paths import flatten, nearest
from peftjax.training.schedules import check_rate

Rate = float | optax.Schedule
DEFAULT = "default"


def make_optimizer(
    name: Literal["adamw", "sgd"],
    learning_rate: Rate,
    *,
    weight_decay: float = 0.0,
    no_decay: Sequence[str] = (),
    groups: Mapping[str, Rate] | None = None,
    clip: float | None = None,
    **settings: Any,
) -> optax.GradientTransformation:
    """Build AdamW or SGD over the trainable leaves.

    Patterns are regular expressions matched against the whole of
    `"<path of the site>/<name of the array>"`, as in `"blocks_0/attn/qkv/kernel/a"`.

    Args:
        name: `"adamw"` (decoupled decay, times the learning rate) or `"sgd"` (decay
            added to the gradient before momentum, as torch does).
        learning_rate: a number, or a function of the step.
        weight_decay: applied to all leaves but those of `no_decay`.
        no_decay: patterns of leaves that do not decay.
        groups: pattern to learning rate, the first match wins; the other leaves take
            `learning_rate`.
        clip: largest global norm of the gradient over all trainable leaves together.
        **settings: passed on to `optax.adamw` (`b1`, `b2`, `eps`) or `optax.sgd`
            (`momentum`, `nesterov`).

    Raises:
        ValueError: an unknown name, a rate or clipping norm that is not above 0 and
            finite, a negative decay; from `init`, a pattern that decides no leaf.

    >>> import jax.numpy as jnp
    >>> optimizer = make_optimizer("sgd", 0.1, groups={"head/.*": 1.0})
    >>> one = jnp.ones(())
    >>> params = {"fc1/kernel": {"a": one}, "head/kernel": {"value": one}}
    >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
    >>> float(updates["head/kernel"]["value"])
    -1.0
    """
    if name not in ("adamw", "sgd"):
        raise ValueError(f"optimizer {name!r}: expected 'adamw' or 'sgd'")
    groups = dict(groups or {})
    rates = {"learning_rate": learning_rate, "clip": clip}
    rates |= {f"group {pattern!r}": rate for pattern, rate in groups.items()}
    for setting, rate in rates.items():
        check_rate(setting, rate)
    if isinstance(weight_decay, int | float) and not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay={weight_decay}: expected 0 or above, finite")
    mask = partial(_decays, tuple(no_decay))

    def of_rate(rate: Rate) -> optax.GradientTransformation:
        if name == "adamw":
            return optax.adamw(rate, weight_decay=weight_decay, mask=mask, **settings)
        decay = optax.add_decayed_weights(weight_decay, mask)
        return optax.chain(decay, optax.sgd(rate, **settings))

    transforms: dict[Hashable, Any] = {DEFAULT: of_rate(learning_rate)}
    transforms |= {pattern: of_rate(rate) for pattern, rate in groups.items()}
    limit = optax.identity() if clip is None else optax.clip_by_global_norm(clip)
    labels = partial(_labels, tuple(groups))
    chained = optax.chain(limit, optax.partition(transforms, labels))

    def init(params):
        paths = _paths(params)[0]
        _check("group", tuple(groups), paths, exclusive=True)
        _check("no_decay", tuple(no_decay), paths, exclusive=False)
        return chained.init(params)

    return optax.GradientTransformationExtraArgs(init, chained.update)


def _paths(params: Any) -> tuple[list[str], Any]:
    # Leaves that partition masked out stay in the structure, so paths align with it.
    paths, _, structure = flatten(params)
    return [str(path).lstrip("/") for path in paths], structure


def _first_match(patterns: Sequence[str], path: str) -> str | None:
    return next((p for p in patterns if re.fullmatch(p, path)), None)


def _labels(patterns: Sequence[str], params: Any) -> Any:
    paths, structure = _paths(params)
    labels = [_first_match(patterns, path) or DEFAULT for path in paths]
    return jax.tree.unflatten(structure, labels)


def _decays(no_decay: Sequence[str], params: Any) -> Any:
    paths, structure = _paths(params)
    return jax.tree.unflatten(
        structure, [_first_match(no_decay, path) is None for path in paths]
    )


def _check(kind: str, patterns: Sequence[str], paths: list[str], exclusive: bool):
    for number, pattern in enumerate(patterns):
        earlier = patterns[:number] if exclusive else ()
        decided = [p for p in paths if _first_match(earlier, p) is None]
        if not any(re.fullmatch(pattern, path) for path in decided):
            raise ValueError(
                f"optimizer {kind} {pattern!r} decides no trainable leaf: it must "
                "match the whole '<site path>/<array name>' and the first match wins; "
                f"nearest of {len(paths)}:\n  " + "\n  ".join(nearest(pattern, paths))
            )
