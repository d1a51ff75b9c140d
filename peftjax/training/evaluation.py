"""Evaluation in batches of one size, so that nothing is compiled twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from peftjax.parallel import sharding

Batch = Mapping[str, Any]
Outputs = Callable[[Callable[..., Any], Batch], dict[str, jax.Array]]
EvalStep = Callable[[Any, Any, Batch], dict[str, jax.Array]]


def make_eval(
    peft: Any, outputs: Outputs, mesh: Mesh, *, gather: bool = True
) -> EvalStep:
    """Build the compiled evaluation of one batch.

    Args:
        peft: what `adapt` returned.
        outputs: `outputs(apply, batch)` calls the model through `apply(*args,
            **kwargs)`, which is `peft.apply` without dropout, and returns
            `{name: [B, ...]}`, one row per example.
        mesh: a mesh of `make_mesh`, which must divide the batch.
        gather: as for `make_step`.

    Returns:
        `eval_step(variables, adapters, batch)`, for `evaluate`: the rows of all
        processes, and `"mask"` where the batch has one. Variables in the layout of
        `Step.shard_base`, whichever it is; of the batch each process gives the examples
        of `parallel.sharding.own_rows`.
    """
    peft = sharding.placed(peft, mesh, gather)

    def run(variables, adapters, batch):
        base = sharding.join(variables)
        mask = {name: batch[name] for name in ("mask",) if name in batch}

        def apply(*args, **kwargs):
            return peft.apply(base, adapters, *args, **kwargs)

        # The rows of all processes come back, and so which of them count.
        return {**outputs(apply, batch), **mask}

    whole = sharding.replicated(mesh)
    compiled = jax.jit(run, out_shardings=whole)

    def placed(leaf):
        there = isinstance(leaf, jax.Array) and leaf.sharding == whole
        return leaf if there else sharding.put(leaf, whole)

    def eval_step(variables, adapters, batch):
        # Adapters of a state, of a file and of the host are one program's.
        adapters = jax.tree.map(placed, adapters)
        return compiled(variables, adapters, sharding.place_batch(batch, mesh))

    return eval_step


def evaluate(
    eval_step: EvalStep, variables: Any, adapters: Any, batches: Iterable[Batch]
) -> dict[str, np.ndarray]:
    """Return `{name: [examples, ...]}` over all batches, without the padding.

    Args:
        eval_step: from `make_eval`.
        variables: the base.
        adapters: the whole tree, as `peft.init` and `peft.combine` return it.
        batches: of one size; rows where `batch["mask"]` is 0 are left out.

    Raises:
        ValueError: no batch came.
    """
    parts = []
    for batch in batches:
        rows = {**eval_step(variables, adapters, batch)}
        mask = rows.pop("mask", batch.get("mask"))
        keep = slice(None) if mask is None else np.asarray(mask) > 0
        parts.append({name: np.asarray(value)[keep] for name, value in rows.items()})
    if not parts:
        raise ValueError("evaluate: no batch came; expected at least one example")
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
