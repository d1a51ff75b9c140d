"""What it takes to adapt Stable Diffusion 1.5's U-Net at 512 pixels, planned on shapes.

`python -m experiments.benchmarks.unet_plan`

No weight exists and nothing is run: sites, trainable parameters, FLOPs of the forward
pass for one example (matrix products and convolutions) and what the adapters add to
them, and bytes: the frozen base in bfloat16, and 16 for each trainable number, which
are itself, its gradient and Adam's two moments in float32. Activations are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import peftjax as pj
from experiments import cli
from experiments.benchmarks.pod_plan import products
from experiments.records import circumstances
from peftjax import storage
from peftjax.models import UNet2DConditionModel, UNetConfig
from peftjax.presets import rules

GIB, TRAINED, FROZEN = 2**30, 16, 2
METHODS: dict[str, Any] = {
    "hra_7": pj.HRA(rank=7, allow_non_identity=True),
    "hra_8": pj.HRA(rank=8),
    "oft_32": pj.OFT(block=32),
    "lora_4": pj.LoRA(rank=4, alpha=4.0),
    "full": "full",
}


def plan(
    config: UNetConfig, side: int, tokens: int, methods: Mapping[str, Any]
) -> dict[str, dict[str, int]]:
    """Return the facts of each method.

    Args:
        config: the architecture.
        side: of the latents.
        tokens: of the text.
        methods: a method or a baseline of the presets, by name.
    """
    model = UNet2DConditionModel(config)
    example = (
        jax.ShapeDtypeStruct((1, side, side, config.in_channels), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct((1, tokens, config.cross_attention_dim), jnp.float32),
    )
    variables = jax.eval_shape(model.init, jax.random.key(0), *example)
    forward = products(jax.make_jaxpr(model.apply)(variables, *example).jaxpr)
    every = sum(leaf.size for leaf in jax.tree.leaves(variables))
    found = {}
    for name, method in methods.items():
        chosen = rules("unet", method)
        sites = pj.adapt(model.apply, variables, *example, rules=chosen).sites
        trainable = sum(site.trainable for site in sites)
        # Full fine-tuning replaces what it trains.
        frozen = 0 if method == "full" else every
        found[name] = {
            "sites": len(sites),
            "trainable": trainable,
            "parameters": every,
            "forward_flops": forward,
            "added_flops": sum(site.flops for site in sites),
            "bytes": FROZEN * frozen + TRAINED * trainable,
        }
    return found


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Plan, print and write, as the command line says."""
    parser = cli.Parser(__doc__, config=False)
    parser.flag("--out", type=Path, default=Path("runs/unet_plan.json"), help="result")
    options = parser.read(argv)
    found = plan(UNetConfig(), 64, 77, METHODS)
    table = Table("method", "sites", "trainable", "share", "GFLOPs", "added", "GiB")
    for name, row in found.items():
        table.add_row(
            name,
            str(row["sites"]),
            f"{row['trainable']:,}",
            f"{row['trainable'] / row['parameters']:.3%}",
            f"{row['forward_flops'] / 1e9:.1f}",
            f"{row['added_flops'] / row['forward_flops']:.2%}",
            f"{row['bytes'] / GIB:.2f}",
        )
    Console(width=100).print(table)
    storage.write_json(options.out, {"methods": found, **circumstances()})
    print(f"Written: {options.out}")


if __name__ == "__main__":
    sys.exit(main())
