"""Methods of equal size: about LoRA's parameters at rank 4, each at its own rate.

`python -m experiments.paired --config configs/equal_size.py --out results/equal_size`

Ranks, blocks and widths are such that the parameters outside the head are within 5 % of
LoRA's 16,384, which a test counts; where one number does not reach that, the four
layers of a block have different ones. `alpha` is twice the rank where there is one. All
adapt the same linear layers, but Hydra, put where its paper does, and the bottlenecks.
Methods whose size is given by the model (IA3, SSF, RoAd, BitFit) or whose sizes are
too far apart (RandLoRA) are left out.

The tasks are the quickstart's digits, and MNIST of 1,000 images as in
`configs/vtab/vision_small.py`: two small ViTs of the same widths.
"""

from ml_collections import ConfigDict

import peftjax as pj
from configs import defaults, quickstart
from configs.quickstart import BESIDE, HEAD, LINEAR, OUTPUT
from configs.vtab import vision_small
from experiments.arguments import known

QKV, PROJ, FC1, FC2 = (
    rf"blocks_\d+/{layer}/kernel"
    for layer in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
)
TASKS = ("digits", "mnist")
GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
EPOCHS = {"digits": 15, "mnist": 8}
# LoRA+ (arXiv 2402.12354): B learns 16 times as fast as A, here about the same mean.
GROUPS = {"lora_plus": ((r".*/a", 0.25), (r".*/b", 4.0))}
START = 1e-2  # of one run alone; `experiments.paired` chooses


def _dora(rank):
    return pj.DoRA(rank=rank, alpha=2.0 * rank)


def _hydralora(rank):
    return pj.HydraLoRA(rank=rank, alpha=2.0 * rank)


METHODS = {
    "lora": ((LINEAR, pj.LoRA(rank=4, alpha=8.0)),),
    "dora": (("|".join((QKV, FC1)), _dora(3)), (LINEAR, _dora(4))),
    "adalora": (
        (
            LINEAR,
            pj.AdaLoRA(
                rank=4,
                alpha=8.0,
                target_rank=3,
                warmup=0.1,
                final=0.3,
                every=5,
                penalty_weight=0.01,
            ),
        ),
    ),
    "hydra": ((OUTPUT, pj.Hydra(rank=6)),),
    "hydralora": ((FC2, _hydralora(2)), (PROJ, _hydralora(2)), (LINEAR, _hydralora(1))),
    "glora": ((PROJ, pj.GLoRA(rank=2)), (LINEAR, pj.GLoRA(rank=1))),
    "hra": ((FC2, pj.HRA(rank=10)), (LINEAR, pj.HRA(rank=8))),
    "oft": (
        (FC1, pj.OFT(block=8)),
        (FC2, pj.OFT(block=16)),
        (LINEAR, pj.OFT(block=32)),
    ),
    "boft": ((LINEAR, pj.BOFT(block=4, factors=2)),),
    "pissa": ((LINEAR, pj.PiSSA(rank=4, alpha=8.0)),),
    "olora": ((LINEAR, pj.OLoRA(rank=4, alpha=8.0)),),
    "lora_plus": ((LINEAR, pj.LoRA(rank=4, alpha=8.0)),),
    "lorafa": ((LINEAR, pj.LoRAFA(rank=7, alpha=14.0)),),
    "loraxs": ((LINEAR, pj.LoRAXS(rank=32, alpha=64.0)),),
    "vera": ((LINEAR, pj.VeRA(rank=880, d_in=256, d_out=256)),),
    "loha": ((LINEAR, pj.LoHa(rank=2, alpha=4.0)),),
    "lokr": ((LINEAR, pj.LoKr(rank=8, alpha=16.0, factor=2)),),
    "hira": ((LINEAR, pj.HiRA(rank=4)),),
    "gralora": ((LINEAR, pj.GraLoRA(rank=4, alpha=8.0)),),
    "miss": ((LINEAR, pj.MiSS(rank=7)),),
    "delora": ((LINEAR, pj.DeLoRA(rank=4, alpha=8.0)),),
    "fact_tt": ((LINEAR, pj.FacT(rank=17, width=64)),),
    "fact_tk": ((LINEAR, pj.FacT(rank=23, width=64, form="tk")),),
    "fourierft": ((LINEAR, pj.FourierFT(frequencies=1024)),),
    "c3a": ((FC1, pj.C3A(block=8)), (LINEAR, pj.C3A(block=16))),
    "shira": ((LINEAR, pj.SHiRA(rank=4)),),
    "repadapter": ((FC2, pj.RepAdapter(rank=6)), (LINEAR, pj.RepAdapter(rank=4))),
    "houlsby": ((BESIDE.format("attn|mlp"), pj.Bottleneck(rank=15)),),
    "adaptformer": (
        (BESIDE.format("mlp"), pj.Bottleneck(rank=31, scale=0.1, side="input")),
    ),
    "compacter": ((BESIDE.format("attn|mlp"), pj.Compacter(32, rank=10, terms=2)),),
    "loreft": ((r"blocks_\d+:output", pj.LoReFT(rank=32)),),
}


def config(task: str = "digits", method: str = "lora", seed: int = 0) -> ConfigDict:
    """Return the configuration of one run.

    Raises:
        UnknownName: an unknown task or method; the nearest valid one is named.
    """
    known(task, TASKS, "task")
    rules = (*METHODS[known(method, METHODS, "method")], HEAD)
    like = quickstart if task == "digits" else vision_small
    found = like.config(task=task, seed=seed)
    optim = {**found.optim, "lr": START}
    if method in GROUPS:
        optim["groups"] = GROUPS[method]
    epochs = EPOCHS[task]
    train = {**found.train, "epochs": epochs, "eval_epochs": epochs}
    own = {"name": "equal_size", "method": method, "rules": rules}
    changed = {"train": train, "optim": optim, "grid": GRID, "measure": False}
    settings = {**found, **own, **changed}
    del settings["table"]
    return defaults.run(**settings, tasks=TASKS, methods=METHODS)


get_config = defaults.door(config)
