"""Step time, FLOPs and memory of every method relative to the frozen-base bound.

`python -m experiments.benchmarks.step_time --methods lora --methods hra --peer PYTHON`

A ViT of width 768 on 197 tokens: on a CPU four blocks, batch 8, in float32; on an
accelerator the whole ViT-B/16, batch 64, with a base in bfloat16. Every linear layer of
the blocks is adapted (qkv, proj, fc1, fc2) at rank 8. A step is the loss and its
gradient, without the optimizer. All calls of one layout take turns in one process, and
the ratio is the median over rounds. `--peer` names a Python with torch and the torch
library of adapters (`pip install torch peft`); it runs the same shapes in a second
process, one step at a time, in the same turns, against a bound of its own; on an
accelerator by `torch.compile`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import peftjax as pj
from experiments import cli
from experiments.benchmarks.peer import peer
from experiments.measure import adapted, analysis, bound, interleave, ratio
from experiments.records import circumstances, plain
from experiments.tasks import digits
from peftjax import storage
from peftjax.models.vit import ViT

LINEAR = r"blocks(_\d+)?/(attn/(qkv|proj)|mlp/fc[12])/kernel"
METHODS = {
    "lora": pj.LoRA(rank=8, alpha=16.0),
    "hra": pj.HRA(rank=8),
    "hydralora": pj.HydraLoRA(rank=8, alpha=16.0),
    "dora": pj.DoRA(rank=8, alpha=16.0),
    "hydra": pj.Hydra(rank=8),
    "glora": pj.GLoRA(rank=8),
}
PEER_METHODS = ("lora", "dora", "hra")
LAYOUTS = {
    "unrolled": {},
    "scanned": {"scan_layers": True},
    "unrolled+remat": {"remat": True},
    "scanned+remat": {"scan_layers": True, "remat": True},
}
SIZE = 224
RATIOS = ("time", "flops", "temporary_bytes")
HEADER = ("method", "time / bound", "FLOPs / bound", "memory / bound", "merged sites")
TORCH_HEADER = ("torch / its bound", "torch / ours")

Call = Callable[[], Any]


class Shapes(NamedTuple):
    """What is measured on a platform; `dtype` is the base's and the activations'."""

    depth: int
    batch: int
    dtype: str


ON_CPU, ON_ACCELERATOR = Shapes(4, 8, "float32"), Shapes(12, 64, "bfloat16")


def shapes() -> Shapes:
    """Return what is measured here."""
    return ON_CPU if jax.default_backend() == "cpu" else ON_ACCELERATOR


def compiled_calls(
    layout: dict[str, bool], methods: list[str]
) -> tuple[dict[str, Call], dict[str, dict[str, float]]]:
    """Return a ready call, and XLA's figures, of the bound and of every method."""
    depth, batch_size, dtype = shapes()
    model = ViT(depth=depth, num_classes=10, dtype=dtype, **layout)
    images = jax.random.normal(jax.random.key(0), (batch_size, SIZE, SIZE, 3), dtype)
    labels = jnp.arange(batch_size) % 10
    variables = jax.jit(model.init)(jax.random.key(1), images)
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
    calls, facts = {}, {}

    def add(name: str, function: Any, *args: Any, merged: int = 0) -> None:
        compiled = function.lower(*args).compile()
        calls[name] = functools.partial(compiled, *args)
        facts[name] = {**analysis(compiled), "merged_sites": merged}

    batch = {"image": images, "label": labels}
    add("bound", bound(model, digits.loss, "pos_embed"), variables, batch, 0)
    for name in methods:
        peft = pj.adapt(model.apply, variables, images, rules={LINEAR: METHODS[name]})
        slow = sum(not site.fast for site in peft.sites)
        adapters = _moved(peft.init(jax.random.key(2)))
        add(name, adapted(peft), variables, adapters, images, labels, merged=slow)
    return calls, facts


def _moved(adapters: Any) -> Any:
    """Return adapters away from their start, so that no factor is zero."""
    return jax.tree.map(
        lambda leaf: leaf + 0.01 * jax.random.normal(jax.random.key(3), leaf.shape),
        adapters,
    )


def measure(
    layout: dict[str, bool], methods: list[str], rounds: int, torch: dict[str, Call]
) -> dict[str, dict[str, float]]:
    """Return the figures of one layout by method; torch's under `torch METHOD`."""
    calls, facts = compiled_calls(layout, methods)
    seconds = interleave({**calls, **torch}, rounds)
    for name in seconds:
        facts.setdefault(name, {})["seconds"] = median(seconds[name])
    for name in methods:
        for key in ("flops", "temporary_bytes"):
            facts[name][f"{key}_over_bound"] = facts[name][key] / facts["bound"][key]
        facts[name]["time_over_bound"] = ratio(seconds, name, "bound")
        facts[name]["flops_per_second"] = facts[name]["flops"] / facts[name]["seconds"]
        if (other := f"torch {name}") in torch:
            facts[other]["time_over_bound"] = ratio(seconds, other, "torch bound")
            facts[other]["time_over_ours"] = ratio(seconds, other, name)
    return facts


def show(title: str, facts: dict[str, dict[str, float]], methods: list[str]) -> None:
    """Print the figures of one layout."""
    with_torch = "torch bound" in facts
    table = Table(*HEADER, *TORCH_HEADER * with_torch, title=title)
    for name in methods:
        cells = [f"{facts[name][f'{key}_over_bound']:.2f}" for key in RATIOS]
        cells.append(f"{facts[name]['merged_sites']}")
        if other := facts.get(f"torch {name}"):
            cells += [f"{other[f'time_over_{key}']:.2f}" for key in ("bound", "ours")]
        table.add_row(name, *cells)
    Console(width=100).print(table)


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write, as the command line says."""
    options = _options(argv)
    methods, results = options.methods or list(METHODS), {}
    with ExitStack() as stack:
        others: dict[str, Call] = {}
        if options.peer:
            names = ["bound", *(name for name in methods if name in PEER_METHODS)]
            given = circumstances()["hardware"]["cores"], SIZE, *shapes(), *methods
            other = peer(options.peer, "peer_torch.py", *given)
            step = stack.enter_context(other)
            others = {f"torch {name}": functools.partial(step, name) for name in names}
        for name in options.layout or list(LAYOUTS):
            torch = others if name == "unrolled" else {}
            results[name] = measure(LAYOUTS[name], methods, options.rounds, torch)
            show(name, results[name], methods)
    document = {
        "shapes": {"width": 768, "tokens": 197, **shapes()._asdict()},
        "methods": {name: plain(METHODS[name]) for name in methods},
        "rounds": options.rounds,
        "layouts": results,
        **circumstances(),
    }
    storage.write_json(options.out, document)
    print(f"Written: {options.out}")


def _options(argv: Sequence[str] | None) -> Any:
    parser = cli.Parser(__doc__, config=False)
    every = {"action": "append", "help": "one or more; by default all"}
    parser.flag("--methods", choices=list(METHODS), **every)
    parser.flag("--layout", choices=list(LAYOUTS), **every)
    parser.flag("--rounds", type=cli.count, default=9, help="timed turns")
    parser.flag("--peer", help="a Python with torch and peft")
    parser.flag("--out", type=Path, default=Path("runs/step_time.json"), help="result")
    return parser.read(argv)


if __name__ == "__main__":
    sys.exit(main())
