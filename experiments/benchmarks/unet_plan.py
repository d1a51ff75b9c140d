"""What it takes to adapt Stable Diffusion 1.5's U-Net at 512 pixels, planned on shapes.

`python -m experiments.benchmarks.unet_plan`

Methods are those of `configs/diffusion/sd15_dreambooth.py`, where its paper has them.
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

import peftjax as pj
from configs.diffusion import sd15_dreambooth
from experiments import cli
from experiments.benchmarks.pod_plan import products
from experiments.records import circumstances
from peftjax import storage
from peftjax.models import UNet2DConditionModel, UNetConfig

GIB, TRAINED, FROZEN = 2**30, 16, 2
METHODS = {
    name: dict(sd15_dreambooth.METHODS[name][1])
    for name in ("hra0", "hra8", "oft", "lora", "full")
}


def plan(
    config: UNetConfig,
    side: int,
    tokens: int,
    methods: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, int]]:
    """Return the facts of each method.

    Args:
        config: the architecture.
        side: of the latents.
        tokens: of the text.
        methods: rules, by name; those of `"full"` replace what they train.
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
    for name, chosen in methods.items():
        sites = pj.adapt(model.apply, variables, *example, rules=chosen).sites
        trainable = sum(site.trainable for site in sites)
        frozen = 0 if name == "full" else every
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
    storage.write_json(options.out, {"methods": found, **circumstances()})
    storage.write_text(options.out.with_suffix(".md"), markdown(found))
    print(markdown(found))


def markdown(found: Mapping[str, Mapping[str, int]]) -> str:
    """Return the plan as a table, a line for each method."""
    lines = [
        "| method | sites | trainable | share % | forward GFLOPs | added % | GiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in found.items():
        share = 100 * row["trainable"] / row["parameters"]
        added = 100 * row["added_flops"] / row["forward_flops"]
        lines.append(
            f"| {name} | {row['sites']} | {row['trainable']:,} | {share:.2f} | "
            f"{row['forward_flops'] / 1e9:.1f} | {added:.2f} | "
            f"{row['bytes'] / GIB:.2f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
