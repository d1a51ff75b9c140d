"""FLOPs, bytes and temporaries of a step compiled for a TPU, over the frozen bound.

`python -m experiments.benchmarks.tpu_bytes --methods lora --depth 1`

No TPU is needed, only its compiler: `pip install 'jax[tpu]'`. The model is a ViT of
width 768 on 197 tokens in bfloat16; every linear layer of its blocks is adapted (qkv,
proj, fc1, fc2) at rank 8. The step is the loss and its gradient, the bound that of the
frozen model and its input. `bytes` is what XLA counts as accessed: where a step does
fewer FLOPs per byte than the chip (240 on a v5e), it is what the step takes.
`--platform cpu` compiles the same step for this machine, `--flatten` with activations
flattened to `[tokens, in]`, as they are on other platforms.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from rich.console import Console
from rich.table import Table

import peftjax as pj
from experiments import cli
from experiments.benchmarks.step_time import LINEAR
from experiments.benchmarks.step_time import METHODS as TIMED
from experiments.measure import adapted, analysis, bound
from experiments.records import circumstances, plain
from experiments.tasks import digits
from peftjax import storage
from peftjax.models.vit import ViT

METHODS = {
    **TIMED,
    "glora_without_a": pj.GLoRA(rank=8, a="none"),
    "oft": pj.OFT(block=32),
    "ia3": pj.IA3(),
    "ssf": pj.SSF(),
    "lokr": pj.LoKr(rank=8, alpha=16.0, factor=8),
}
FIGURES = ("flops", "bytes", "temporary_bytes")


def device(platform: str) -> Any:
    """Return a chip to compile for, whether or not it is there."""
    if platform == "cpu":
        return jax.devices("cpu")[0]
    # no TPU is looked for: its runtime would wait for one to answer
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    jax.config.update("jax_platforms", "cpu")
    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    return chips.devices[0]


def figures(function: Any, *args: Any) -> dict[str, float]:
    """Compile a jitted function of shapes, and return XLA's own counts."""
    compiled = function.lower(*args).compile()
    accessed = compiled.cost_analysis()["bytes accessed"]
    return {**analysis(compiled), "bytes": accessed}


def measure(
    platform: str,
    methods: Sequence[str],
    depth: int,
    batch: int,
    flatten: bool,
    fused: bool,
) -> dict[str, Any]:
    """Return the figures of the bound and of every method."""
    here = SingleDeviceSharding(device(platform))

    def placed(tree: Any, dtype: Any = None) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, dtype or leaf.dtype, sharding=here
            ),
            tree,
        )

    model = ViT(depth=depth, num_classes=100, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.bfloat16)
    fresh = jax.eval_shape(model.init, jax.random.key(0), images)
    variables, images = placed(fresh, jnp.bfloat16), placed(images)
    labels = placed(jax.ShapeDtypeStruct((batch,), jnp.int32))
    seed = placed(jax.ShapeDtypeStruct((), jnp.int32))
    inputs = variables, {"image": images, "label": labels}, seed
    found = {"bound": figures(bound(model, digits.loss, "pos_embed"), *inputs)}
    for name in methods:
        rules = {LINEAR: METHODS[name]}
        peft = pj.adapt(model.apply, variables, images, rules=rules, fused=fused)
        peft = peft.compiled_for("cpu" if flatten else platform)
        adapters = placed(jax.eval_shape(peft.init, jax.random.key(0), variables))
        found[name] = figures(adapted(peft), variables, adapters, images, labels)
        for key in FIGURES:
            found[name][f"{key}_over_bound"] = found[name][key] / found["bound"][key]
        print(name, *(f"{found[name][f'{key}_over_bound']:.2f}" for key in FIGURES))
    return found


def show(title: str, found: dict[str, Any]) -> None:
    """Print the ratios."""
    table = Table("method", "FLOPs / bound", "bytes / bound", "memory / bound")
    table.title = title
    for name, row in found.items():
        if name != "bound":
            table.add_row(name, *(f"{row[f'{key}_over_bound']:.2f}" for key in FIGURES))
    Console(width=100).print(table)


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Compile, print and write, as the command line says."""
    parser = cli.Parser(__doc__, config=False)
    every = {"action": "append", "help": "one or more; by default all"}
    parser.flag("--methods", choices=list(METHODS), **every)
    parser.flag(
        "--platform", choices=["tpu", "cpu"], default="tpu", help="compiled for"
    )
    parser.flag("--depth", type=cli.count, default=4, help="blocks")
    parser.flag("--batch", type=cli.count, default=64, help="images")
    parser.flag("--flatten", action="store_true", help="as on other platforms")
    parser.flag("--fused", action="store_true", help="low-rank products as one kernel")
    parser.flag("--out", type=Path, default=Path("runs/tpu_bytes.json"), help="result")
    options = parser.read(argv)
    methods, shape = options.methods or list(METHODS), (options.depth, options.batch)
    settings = options.flatten, options.fused
    found = measure(options.platform, methods, *shape, *settings)
    show(f"{options.platform}, {options.depth} blocks", found)
    document = {
        "platform": options.platform,
        "flatten": options.flatten,
        "fused": options.fused,
        "shapes": {"width": 768, "tokens": 197, "depth": shape[0], "batch": shape[1]},
        "methods": {name: plain(METHODS[name]) for name in methods},
        "figures": found,
        **circumstances(),
    }
    storage.write_json(options.out, document)
    print(f"Written: {options.out}")


if __name__ == "__main__":
    sys.exit(main())
