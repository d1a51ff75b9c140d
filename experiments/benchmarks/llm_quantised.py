"""One LoRA over SmolLM2-135M in floats, in 8 and in 4 bits: bytes, time, loss.

`python -m experiments.benchmarks.llm_quantised --data-dir DIR`

Equal factors, equal batches of packed GSM8K training texts, Adam; layers are scanned.
What is in codes are the kernels of the layers; embeddings and norms are in bfloat16, as
in the base beside. Temporary bytes are XLA's for a step; steps are timed in turns, and
every time is a ratio to the bfloat16 base's in the same turn.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import peftjax as pj
from experiments import cli
from experiments.benchmarks import llm_case
from experiments.measure import analysis, interleave, ratio
from experiments.records import circumstances
from peftjax import storage
from peftjax.data.packing import pack

KERNELS = r".*_proj/kernel"
FORMATS = {"Int8": pj.Int8(), "NF4, double": pj.NF4(double=True)}
LENGTH, STEPS, BASE = 256, 3, "bfloat16"


def bases(variables: Any) -> dict[str, Any]:
    """Return the base in floats and in codes, by name."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    coded = {
        name: pj.quantise(half, {KERNELS: format}) for name, format in FORMATS.items()
    }
    return {"float32": variables, BASE: half, **coded}


def size(variables: Any) -> dict[str, int]:
    """Return the bytes of the kernels of the layers, and of all."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    kernels = [x.nbytes for path, x in leaves if "_proj" in jax.tree_util.keystr(path)]
    return {"kernel_bytes": sum(kernels), "bytes": sum(x.nbytes for _, x in leaves)}


def measured(case: llm_case.Case, rows: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Return bytes, times and losses over each base."""
    packed = pack(case.chats, LENGTH, case.pad)
    batches = [
        {name: jnp.asarray(part[i : i + rows]) for name, part in packed.items()}
        for i in range(0, STEPS * rows, rows)
    ]
    found: dict[str, dict[str, Any]] = {}
    calls = {}
    for name, base in bases(case.variables).items():
        peft, state = llm_case.adapted(case.model, base)
        step = llm_case.step(peft).lower(base, state, batches[0]).compile()
        calls[name] = functools.partial(step, base, state, batches[0])
        losses = []
        for batch in batches:
            state, (total, count) = step(base, state, batch)
            losses.append(float(total / count))
        memory = analysis(step)["temporary_bytes"]
        found[name] = {**size(base), "temporary_bytes": memory, "losses": losses}
    seconds = interleave(calls, rounds, warmup=0)
    for name, own in found.items():
        own["seconds"] = median(seconds[name])
        own["time_ratio"] = ratio(seconds, name, BASE)
    return found


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write, as the command line says."""
    parser = cli.Parser(__doc__, config=False)
    llm_case.flags(parser)
    out = {"default": Path("runs/llm_quantised.json"), "help": "result"}
    parser.flag("--out", type=Path, **out)
    options = parser.read(argv)
    # a row holds at most six texts, and at least one
    case = llm_case.case(options, 6 * STEPS * options.rows)
    found = measured(case, options.rows, options.rounds)
    table = Table("base", "MB of kernels", "MB in all", "temporary MB", "s", "losses")
    for name, own in found.items():
        sizes = [own[key] for key in ("kernel_bytes", "bytes", "temporary_bytes")]
        losses = " ".join(f"{loss:.4f}" for loss in own["losses"])
        numbers = [f"{number / 1e6:.1f}" for number in sizes]
        table.add_row(name, *numbers, f"{own['seconds']:.3f}", losses)
    Console(width=120).print(table)
    shapes = {"rows": options.rows, "tokens": LENGTH, "dtype": options.dtype}
    case_of = {"shapes": shapes, "rounds": options.rounds, "drawn": options.drawn}
    document = {**case_of, "bases": found, **circumstances()}
    storage.write_json(options.out, document)
    print(f"Written: {options.out}")


if __name__ == "__main__":
    sys.exit(main())
