"""Methods of equal size on MRPC: about LoRA's parameters at rank 4, on MiniLM-L6.

`python -m experiments.paired --config configs/glue/equal_size.py \
  --methods lora,dora,hra --choosing 1 --seeds 2 --out results/equal_size_mrpc`

The parameters outside pooler and classifier are within 5 % of LoRA's 165,888, which a
test counts. All adapt every linear layer of the encoder, but Hydra and the bottlenecks,
put where their papers do. `alpha` is twice the rank where there is one. Data, weights
and the rest of training as in `configs/glue/minilm.py`, but for one epoch of pairs cut
to 64 tokens, since a run takes minutes of a CPU core and each method needs several.
"""

from ml_collections import ConfigDict

import peftjax as pj
from configs import defaults
from configs.equal_size import GROUPS
from configs.glue import minilm
from experiments.arguments import known

LINEAR = r"layers_\d+/(attention/(query|key|value|output)|intermediate|output)/kernel"
INNER = r"layers_\d+/(intermediate|output)/kernel"
UP, DOWN = r"layers_\d+/intermediate/kernel", r"layers_\d+/output/kernel"
QV = r"layers_\d+/attention/(query|value)/kernel"
GRID = (5e-4, 1.5e-3, 5e-3, 1.5e-2)
START = 1.5e-3  # of one run alone; `experiments.paired` chooses

METHODS = {
    "lora": ((LINEAR, pj.LoRA(rank=4, alpha=8.0)),),
    "dora": (
        (INNER, pj.DoRA(rank=3, alpha=6.0)),
        (LINEAR, pj.DoRA(rank=4, alpha=8.0)),
    ),
    "hydra": ((DOWN, pj.Hydra(rank=10)),),
    "hydralora": (
        (DOWN, pj.HydraLoRA(rank=2, alpha=4.0)),
        (LINEAR, pj.HydraLoRA(rank=1, alpha=2.0)),
    ),
    "glora": ((QV, pj.GLoRA(rank=2)), (LINEAR, pj.GLoRA(rank=1))),
    "hra": ((LINEAR, pj.HRA(rank=8)),),
    "oft": ((UP, pj.OFT(block=24)), (LINEAR, pj.OFT(block=16))),
    "pissa": ((LINEAR, pj.PiSSA(rank=4, alpha=8.0)),),
    "lora_plus": ((LINEAR, pj.LoRA(rank=4, alpha=8.0)),),
    "lorafa": ((LINEAR, pj.LoRAFA(rank=8, alpha=16.0)),),
    "hira": ((LINEAR, pj.HiRA(rank=4)),),
    "delora": ((LINEAR, pj.DeLoRA(rank=4, alpha=8.0)),),
    "houlsby": ((r"layers_\d+/(attention/)?output:output", pj.Bottleneck(rank=17)),),
}


def config(task: str = "mrpc", method: str = "lora", seed: int = 0) -> ConfigDict:
    """Return the configuration of one run.

    Raises:
        UnknownName: an unknown task or method; the nearest valid one is named.
    """
    rules = (*METHODS[known(method, METHODS, "method")], *minilm.HEAD)
    found = minilm.config(task=known(task, ("mrpc",), "task"), seed=seed)
    optim = {**found.optim, "lr": START}
    if method in GROUPS:
        optim["groups"] = GROUPS[method]
    own = {"name": "equal_size_mrpc", "method": method, "rules": rules}
    data = {**found.data, "max_length": 64, "buckets": (32, 48, 64)}
    changed = {"data": data, "train": {**found.train, "epochs": 1}, "optim": optim}
    settings = {**found, **own, **changed, "grid": GRID, "measure": False}
    del settings["table"]
    return defaults.run(**settings, tasks=("mrpc",), methods=METHODS)


get_config = defaults.door(config)
