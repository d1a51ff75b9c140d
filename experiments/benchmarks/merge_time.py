"""Time and memory of merging adapters into a ViT-B/16.

`python -m experiments.benchmarks.merge_time`

Twelve blocks, rank 8 on every linear layer: 48 sites of four shapes. `cold` is the
first merge of a process, compilation included and no cache of programs; `warm` the
median of the following, as is the peak of resident memory while merging, over what is
held before and the merged weights, in blocks of the model.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

import peftjax as pj
from experiments import cli
from experiments.benchmarks import memory
from experiments.records import circumstances
from peftjax import storage
from peftjax.models.vit import vit
from peftjax.testing import perturb

LINEAR = r"blocks_\d+/(attn/(qkv|proj)|mlp/fc[12])/kernel"
METHODS = {
    "lora": pj.LoRA(rank=8, alpha=16.0),
    "dora": pj.DoRA(rank=8, alpha=16.0),
    "hra": pj.HRA(rank=8),
    "glora": pj.GLoRA(rank=8),
}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write, as the command line says."""
    parser = cli.Parser(__doc__, config=False)
    parser.flag("--out", type=Path, help="JSON file to write")
    parser.flag("--rounds", type=cli.count, default=5, help="warm merges; the median")
    options = parser.read(argv)
    jax.config.update("jax_enable_compilation_cache", False)
    model, images = vit("B/16", num_classes=10), jnp.zeros((1, 224, 224, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    result: dict[str, Any] = {"sites": 48, **circumstances()}
    for name, method in METHODS.items():
        peft = pj.adapt(model.apply, variables, images, rules={LINEAR: method})
        adapters = perturb(peft, peft.init(jax.random.key(2), variables), 0.01)
        result[name] = measure(peft, variables, adapters, options.rounds)
        print(name, {k: float(f"{v:.3g}") for k, v in result[name].items()})
    if options.out:
        storage.write_json(options.out, result)


def measure(
    peft: pj.Peft, variables: Any, adapters: Any, rounds: int
) -> dict[str, float]:
    """Return seconds, cold and warm, and the blocks of memory above the result."""
    jax.block_until_ready((variables, adapters))
    cold, _ = _merged(peft, variables, adapters)
    seconds, above = zip(*(_merged(peft, variables, adapters) for _ in range(rounds)))
    block = sum(
        leaf.nbytes for leaf in jax.tree.leaves(variables["params"]["blocks_0"])
    )
    return {
        "cold_seconds": cold,
        "warm_seconds": median(seconds),
        "blocks_above_result": median(above) / block,
    }


def _merged(peft: pj.Peft, variables: Any, adapters: Any) -> tuple[float, int]:
    """Merge; return seconds, and bytes at the peak beyond what the result holds."""
    memory.reset()
    before, start = memory.held(), time.perf_counter()
    merged = jax.block_until_ready(peft.merge(variables, adapters))
    seconds = time.perf_counter() - start
    pairs = zip(jax.tree.leaves(merged), jax.tree.leaves(variables))
    new = sum(leaf.nbytes for leaf, old in pairs if leaf is not old)
    return seconds, memory.peak() - before - new


if __name__ == "__main__":
    sys.exit(main())
