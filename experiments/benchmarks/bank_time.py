"""Time and memory of a bank of adapters in one batch, relative to one adapter.

`python -m experiments.benchmarks.bank_time --out results/bank_cpu.json`

A ViT of width 384 with two blocks on 64 images of 65 tokens; LoRA of rank 8 on every
linear layer of the blocks. Rows use 8 or 64 adapters, an eighth of them the base.
Calls take turns in one process, and the ratio is the median over rounds; every row is
compared with a run of its adapter alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

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
ROWS = 64


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write, as the command line says."""
    parser = cli.Parser(__doc__, config=False)
    parser.flag("--out", type=Path, help="JSON file to write")
    parser.flag("--rounds", type=cli.count, default=5, help="the median counts")
    options = parser.read(argv)
    size = {"width": 384, "depth": 2, "num_heads": 6, "mlp_dim": 1536}
    model = ViT(image_size=64, patch_size=8, num_classes=0, **size)
    images = jax.random.normal(jax.random.key(0), (ROWS, 64, 64, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    rules = {LINEAR: pj.LoRA(rank=8, alpha=16.0)}
    peft = pj.adapt(model.apply, variables, images, rules=rules, strict=True)
    fresh = jax.jit(peft.init)
    one = jax.jit(peft.apply)
    all_adapters = [
        perturb(peft, fresh(jax.random.key(i)), 0.02 * i) for i in range(64)
    ]

    compiled = one.lower(variables, all_adapters[0], images).compile()
    calls = {"one adapter": lambda: compiled(variables, all_adapters[0], images)}
    memory = {"one adapter": compiled.memory_analysis().temp_size_in_bytes}
    worst = {}
    for count in (8, 64):
        bank = pj.bank(all_adapters[:count])
        ids = np.arange(ROWS) % count
        ids[::8] = -1

        @jax.jit
        def run(variables, bank, images, ids):
            return peft.apply(variables, bank, images, adapter_ids=ids)

        name, ids = f"{count} adapters", jnp.asarray(ids)
        program = run.lower(variables, bank, images, ids).compile()
        memory[name] = program.memory_analysis().temp_size_in_bytes
        calls[name] = lambda p=program, b=bank, i=ids: p(variables, b, images, i)
        found, base = (
            program(variables, bank, images, ids),
            model.apply(variables, images),
        )
        rows = []
        for which in sorted(set(np.asarray(ids))):
            alone = base if which < 0 else one(variables, all_adapters[which], images)
            rows.append(jnp.abs((found - alone)[ids == which]).max())
        worst[name] = float(max(rows) / jnp.abs(found).max())

    seconds = interleave(calls, options.rounds)
    result = {"rows": ROWS, "tokens": 65, **circumstances()}
    for name in list(calls)[1:]:
        result[name] = {
            "time_over_one": ratio(seconds, name, "one adapter"),
            "memory_over_one": memory[name] / memory["one adapter"],
            "temporary_bytes": memory[name],
            "largest_difference": worst[name],
        }
        print(name, {k: float(f"{v:.3g}") for k, v in result[name].items()})
    if options.out:
        storage.write_json(options.out, result)


if __name__ == "__main__":
    sys.exit(main())
