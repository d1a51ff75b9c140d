"""FLOPs and temporary memory of every method's step, over those of the frozen model.

`python -m experiments.benchmarks.bound --methods lora --methods vera`

Read off XLA's own analysis of compiled programs: nothing is run, and no weight exists.
The bound is the frozen model's forward pass and input gradient, below which no adapter
can train. A ViT of width 768 with one block, batch 8, 197 tokens; all its linear layers
are adapted (qkv, proj, fc1, fc2), at rank 8 where there is one; by methods that are of
no weight, what attention and MLP return, or the block's tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import peftjax as pj
from experiments import cli
from experiments.records import circumstances, plain
from peftjax import storage
from peftjax.models.vit import ViT

LINEAR = r"blocks(_\d+)?/(attn/(qkv|proj)|mlp/fc[12])/kernel"
OUTPUTS = r"blocks(_\d+)?/(attn|mlp):output"
LAYERS = r"blocks(_\d+)?:output"
BESIDE, PROMPTS = r"blocks(_\d+)?/mlp:output", r"blocks(_\d+)?/prompts:output"
IMAGES = jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32)
LARGEST = {"d_in": 3072, "d_out": 3072}
METHODS: dict[str, pj.Method] = {
    "lora": pj.LoRA(rank=8, alpha=16.0),
    "dora": pj.DoRA(rank=8, alpha=16.0),
    "lorafa": pj.LoRAFA(rank=8, alpha=16.0),
    "pissa": pj.PiSSA(rank=8, alpha=16.0),
    "olora": pj.OLoRA(rank=8, alpha=16.0),
    "loraxs": pj.LoRAXS(rank=8, alpha=16.0),
    "vera": pj.VeRA(rank=8, **LARGEST),
    "randlora": pj.RandLoRA(rank=8, alpha=16.0, **LARGEST),
    "loha": pj.LoHa(rank=8, alpha=16.0),
    "adalora": pj.AdaLoRA(rank=8, alpha=16.0, target_rank=4),
    "lokr": pj.LoKr(rank=8, alpha=16.0),
    "hira": pj.HiRA(rank=8),
    "gralora": pj.GraLoRA(rank=8, alpha=16.0),
    "miss": pj.MiSS(rank=8),
    "delora": pj.DeLoRA(rank=8, alpha=16.0),
    "fact_tt": pj.FacT(rank=8, width=768),
    "fact_tk": pj.FacT(rank=8, width=768, form="tk"),
    "fourierft": pj.FourierFT(frequencies=1000),
    "c3a": pj.C3A(block=64),
    "shira": pj.SHiRA(rank=8),
    "repadapter": pj.RepAdapter(rank=8),
    "hydra": pj.Hydra(rank=8),
    "hydralora": pj.HydraLoRA(rank=8, alpha=16.0),
    "glora": pj.GLoRA(rank=8),
    "glora_supernet": pj.GLoRASupernet(rank=8),
    "hra": pj.HRA(rank=8),
    "composition": pj.Composition(modules=3, rank=8),
    "xlora": pj.XLoRA(modules=3, rank=8, hidden=768, reads="norm"),
    "oft": pj.OFT(block=8),
    "boft": pj.BOFT(block=8, factors=2),
    "road": pj.RoAd(),
    "ia3": pj.IA3(),
    "ssf": pj.SSF(),
    "houlsby": pj.Bottleneck(rank=8),
    "adaptformer": pj.Bottleneck(rank=8, scale=0.1, side="input"),
    "compacter": pj.Compacter(width=24, rank=1),
    "loreft": pj.LoReFT(rank=8),
    "vpt_deep": pj.VPT(length=10),
    "full": pj.Full(),
}
# Where a method is put that is not on every linear layer; how many places a block has.
PLACES = {
    "houlsby": (OUTPUTS, 2),
    "adaptformer": (BESIDE, 1),
    "compacter": (OUTPUTS, 2),
    "loreft": (LAYERS, 1),
    "vpt_deep": (PROMPTS, 1),
}


@cache
def base(depth: int, scan_layers: bool, remat: bool) -> tuple[Any, Any, Any]:
    """Return the model, its variables' shapes, and FLOPs and bytes of the bound."""
    model = ViT(depth=depth, num_classes=0, scan_layers=scan_layers, remat=remat)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    gradient = jax.grad(lambda x, v: model.apply(v, x).sum())
    return model, variables, costs(gradient, IMAGES, variables)


def costs(function: Any, *arguments: Any) -> tuple[float, float]:
    """Return FLOPs and temporary bytes of a compiled function."""
    compiled: Any = jax.jit(function).lower(*arguments).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    return compiled.cost_analysis()["flops"], memory


def ratios(
    method: pj.Method,
    depth: int = 1,
    scan_layers: bool = False,
    remat: bool = False,
    place: tuple[str, int] = (LINEAR, 4),
) -> tuple[float, float]:
    """Return FLOPs and temporary memory of the adapters' gradient, over the bound's."""
    model, variables, bound = base(depth, scan_layers, remat)
    pattern, number = place
    rules = {pattern: method}
    peft = pj.adapt(model.apply, variables, IMAGES, rules=rules, strict=True)
    assert len(peft.sites) == number * (1 if scan_layers else depth)
    adapters = jax.eval_shape(peft.init, jax.random.key(0), variables)
    trainable, frozen = peft.partition(adapters)

    def loss(trainable: Any, frozen: Any, variables: Any, images: Any) -> jax.Array:
        return peft.apply(variables, peft.combine(trainable, frozen), images).sum()

    step = costs(jax.grad(loss), trainable, frozen, variables, IMAGES)
    return step[0] / bound[0], step[1] / bound[1]


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Compile, print and write, as the command line says."""
    parser = cli.Parser(__doc__, config=False)
    every = {"action": "append", "help": "one or more; by default all"}
    parser.flag("--methods", choices=list(METHODS), **every)
    parser.flag("--out", type=Path, default=Path("runs/bound.json"), help="result")
    options = parser.read(argv)
    names = options.methods or list(METHODS)
    found = {
        name: ratios(METHODS[name], place=PLACES.get(name, (LINEAR, 4)))
        for name in names
    }
    table = Table("method", "FLOPs / bound", "memory / bound")
    for name, pair in found.items():
        table.add_row(name, *(f"{value:.2f}" for value in pair))
    Console(width=100).print(table)
    document = {
        "shapes": {"width": 768, "depth": 1, "batch": 8, "tokens": 197},
        "methods": {name: plain(METHODS[name]) for name in names},
        "over_bound": {
            name: {"flops": flops, "temporary_bytes": memory}
            for name, (flops, memory) in found.items()
        },
        **circumstances(),
    }
    storage.write_json(options.out, document)
    print(f"Written: {options.out}")


if __name__ == "__main__":
    sys.exit(main())
