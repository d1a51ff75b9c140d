"""Time and memory of a bank of adapters in one batch, relative to one adapter.

`python -m experiments.benchmarks.bank_time`

A ViT of width 384 with two blocks on 64 images of 65 tokens; LoRA of rank 8 on every
linear layer of the blocks. Rows use 8 or 64 adapters, an eighth of them the base.
Calls take turns in one process, and the ratio is the median over rounds; every row is
compared with a run of its adapter alone.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import peftjax as pj
from experiments import cli
from experiments.measure import interleave, ratio
from experiments.records import circumstances
from peftjax import storage
from peftjax.models.vit import ViT
from peftjax.testing import perturb

LINEAR = r"blocks_\d+/(attn/(qkv|proj)|mlp/fc[12])/kernel"
ROWS, ONE = 64, "one adapter"
SIZE: Any = {"width": 384, "depth": 2, "num_heads": 6, "mlp_dim": 1536}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write, as the command line says."""
    parser = cli.Parser(__doc__, config=False)
    parser.flag("--out", type=Path, help="JSON file to write")
    parser.flag("--rounds", type=cli.count, default=5, help="the median counts")
    options = parser.read(argv)
    calls, facts = compiled_calls()
    seconds = interleave(calls, options.rounds)
    result = {"rows": ROWS, "tokens": 65, **circumstances()}
    for name in list(calls)[1:]:
        result[name] = {"time_over_one": ratio(seconds, name, ONE), **facts[name]}
        print(name, {k: float(f"{v:.3g}") for k, v in result[name].items()})
    if options.out:
        storage.write_json(options.out, result)


def compiled_calls() -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Return a ready call of one adapter and of each bank, and XLA's figures."""
    model = ViT(image_size=64, patch_size=8, num_classes=0, **SIZE)
    images = jax.random.normal(jax.random.key(0), (ROWS, 64, 64, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    rules = {LINEAR: pj.LoRA(rank=8, alpha=16.0)}
    peft = pj.adapt(model.apply, variables, images, rules=rules, strict=True)
    fresh, one = jax.jit(peft.init), jax.jit(peft.apply)
    adapters = [perturb(peft, fresh(jax.random.key(i)), 0.02 * i) for i in range(64)]
    compiled = one.lower(variables, adapters[0], images).compile()
    calls = {ONE: lambda: compiled(variables, adapters[0], images)}
    memory = compiled.memory_analysis().temp_size_in_bytes
    base, facts = model.apply(variables, images), {}

    def alone(which):
        return base if which < 0 else one(variables, adapters[which], images)

    for count in (8, 64):
        ids = np.arange(ROWS) % count
        ids[::8] = -1
        arguments = variables, pj.bank(adapters[:count]), images, jnp.asarray(ids)
        program = jax.jit(_banked(peft)).lower(*arguments).compile()
        name, found = f"{count} adapters", program(*arguments)
        calls[name] = functools.partial(program, *arguments)
        used = program.memory_analysis().temp_size_in_bytes
        worst = max(
            jnp.abs((found - alone(which))[ids == which]).max() for which in set(ids)
        )
        facts[name] = {
            "memory_over_one": used / memory,
            "temporary_bytes": used,
            "largest_difference": float(worst / jnp.abs(found).max()),
        }
    return calls, facts


def _banked(peft: pj.Peft) -> Any:
    def run(variables, bank, images, ids):
        return peft.apply(variables, bank, images, adapter_ids=ids)

    return run


if __name__ == "__main__":
    sys.exit(main())
