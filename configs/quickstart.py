"""Adapt a small ViT, trained on the digits 0 to 4, to the digits 5 to 9.

`python -m experiments.table --config configs/quickstart.py`
`python -m experiments.finetune --config configs/quickstart.py:method=hra --workdir DIR`

Data: scikit-learn's 1,797 scans of 8x8 pixels, split 70/10/20 by a fixed seed. Learning
rates are the best of `grid` by `experiments.sweep`: mean accuracy on the validation
split over three seeds that the table does not use; the smaller of two equals.

`--methods all` adds the library's other methods. Their rates are the best of 3e-3, 1e-2
and 3e-2 by one seed's held-out accuracy; RoAd and VPT have LoRA's, and LoRA+, which is
LoRA with a group of the optimizer, a tenth of it. `glora_search` is GLoRA as its paper
has it, a supernet and its search, which takes minutes for each seed.
"""

from ml_collections import ConfigDict

import peftjax as pj
from configs import defaults
from experiments.arguments import known

LINEAR = r"blocks_\d+/(attn/(qkv|proj)|mlp/fc[12])/kernel"
OUTPUT = r"blocks_\d+/(attn/proj|mlp/fc2)/kernel"  # where Hydra's paper puts it
QKV, FC2 = r"blocks_\d+/attn/qkv/kernel", r"blocks_\d+/mlp/fc2/kernel"
HEAD = (r"head/.*", pj.Full())
MODEL = {
    "image_size": 8,
    "patch_size": 2,
    "width": 64,
    "depth": 4,
    "num_heads": 4,
    "mlp_dim": 256,
    "num_classes": 5,
}
OPTIM = {"schedule": "cosine", "weight_decay": 1e-4, "warmup": 0.1}

METHODS = {
    "full": (1e-2, ((r".*", pj.Full()),)),
    "linear": (3e-2, (HEAD,)),
    "bitfit": (1e-2, ((r".*/bias", pj.Full()), HEAD)),
    "lora": (1e-2, ((LINEAR, pj.LoRA(rank=4, alpha=8.0)), HEAD)),
    "dora": (1e-2, ((LINEAR, pj.DoRA(rank=4, alpha=8.0)), HEAD)),
    "hydra": (3e-3, ((OUTPUT, pj.Hydra(rank=4)), HEAD)),
    "hydralora": (3e-3, ((LINEAR, pj.HydraLoRA(rank=4, alpha=8.0)), HEAD)),
    "glora": (1e-2, ((LINEAR, pj.GLoRA(rank=4)), HEAD)),
    "hra": (3e-2, ((LINEAR, pj.HRA(rank=8)), HEAD)),
    "oft": (3e-3, ((LINEAR, pj.OFT(block=8)), HEAD)),
    "ssf": (3e-2, ((LINEAR, pj.SSF()), HEAD)),
    "ia3": (1e-2, ((QKV, pj.IA3()), (FC2, pj.IA3(side="input")), HEAD)),
}
BESIDE = r"blocks_\d+/({}):output"
ADAPTFORMER = pj.Bottleneck(rank=8, scale=0.1, side="input")
MOE = pj.XLoRA(modules=3, rank=4, share=False, train=True)
COMPACTER = pj.Compacter(width=16, rank=1)
VPT = pj.VPT(length=10, patch=2)
RANKS = pj.AdaLoRA(
    rank=6,
    alpha=8.0,
    target_rank=4,
    warmup=0.1,
    final=0.3,
    every=5,
    penalty_weight=0.01,
)
# In the table where `--methods` names them, or says `all`.
ON_REQUEST = {
    "adalora": (3e-2, ((LINEAR, RANKS), HEAD)),
    "pissa": (3e-3, ((LINEAR, pj.PiSSA(rank=4, alpha=8.0)), HEAD)),
    "olora": (1e-2, ((LINEAR, pj.OLoRA(rank=4, alpha=8.0)), HEAD)),
    "lorafa": (1e-2, ((LINEAR, pj.LoRAFA(rank=4, alpha=8.0)), HEAD)),
    "layernorm": (3e-2, ((r".*norm\w*/(scale|bias)", pj.Full()), HEAD)),
    "loraxs": (1e-2, ((LINEAR, pj.LoRAXS(rank=16, alpha=32.0)), HEAD)),
    "vera": (3e-2, ((LINEAR, pj.VeRA(rank=64, d_in=256, d_out=256)), HEAD)),
    "randlora": (
        3e-3,
        ((LINEAR, pj.RandLoRA(rank=8, alpha=16.0, d_in=256, d_out=256)), HEAD),
    ),
    "loha": (1e-2, ((LINEAR, pj.LoHa(rank=4, alpha=8.0)), HEAD)),
    "lokr": (3e-2, ((LINEAR, pj.LoKr(rank=4, alpha=8.0)), HEAD)),
    "hira": (3e-2, ((LINEAR, pj.HiRA(rank=4)), HEAD)),
    "gralora": (3e-3, ((LINEAR, pj.GraLoRA(rank=4, alpha=8.0)), HEAD)),
    "miss": (1e-2, ((LINEAR, pj.MiSS(rank=4)), HEAD)),
    "delora": (3e-2, ((LINEAR, pj.DeLoRA(rank=4, alpha=8.0)), HEAD)),
    "fact_tt": (1e-2, ((LINEAR, pj.FacT(rank=8, width=64)), HEAD)),
    "fact_tk": (3e-2, ((LINEAR, pj.FacT(rank=8, width=64, form="tk")), HEAD)),
    "fourierft": (1e-2, ((LINEAR, pj.FourierFT(frequencies=200)), HEAD)),
    "c3a": (1e-2, ((LINEAR, pj.C3A(block=16)), HEAD)),
    "shira": (3e-2, ((LINEAR, pj.SHiRA(rank=4)), HEAD)),
    "repadapter": (3e-2, ((LINEAR, pj.RepAdapter(rank=4)), HEAD)),
    "houlsby": (3e-2, ((BESIDE.format("attn|mlp"), pj.Bottleneck(rank=8)), HEAD)),
    "adaptformer": (1e-2, ((BESIDE.format("mlp"), ADAPTFORMER), HEAD)),
    "lora_moe": (1e-2, ((LINEAR, MOE), HEAD)),
    "compacter": (1e-2, ((BESIDE.format("attn|mlp"), COMPACTER), HEAD)),
    "loreft": (1e-2, ((r"blocks_\d+:output", pj.LoReFT(rank=8)), HEAD)),
    "vpt_shallow": (1e-2, (("prompts:output", VPT), HEAD)),
    "vpt_deep": (1e-2, ((r"blocks_\d+/prompts:output", VPT), HEAD)),
    "boft": (1e-2, ((LINEAR, pj.BOFT(block=8, factors=2)), HEAD)),
    "road": (1e-2, ((LINEAR, pj.RoAd()), HEAD)),
    "lora_plus": (1e-3, METHODS["lora"][1]),
    "glora_search": METHODS["glora"],
}
# Patterns of parameters, and the factor of the rate there.
GROUPS = {"lora_plus": ((r".*/b", 16.0),)}  # arXiv 2402.12354
SEARCH = {"limit": 12_000, "population": 20, "generations": 10}
SEARCH |= {"parents": 5, "mutants": 10, "crossovers": 10}
EVERY = {**METHODS, **ON_REQUEST}


def config(task: str = "digits", method: str = "lora", seed: int = 0) -> ConfigDict:
    """Return the configuration of one run.

    Raises:
        UnknownName: an unknown task or method; the nearest valid one is named.
    """
    known(task, ["digits"], "task")
    lr, rules = EVERY[known(method, EVERY, "method")]
    groups = {"groups": GROUPS[method]} if method in GROUPS else {}
    return defaults.run(
        name="quickstart",
        family="digits",
        task=task,
        method=method,
        seed=seed,
        rules=rules,
        model=MODEL,
        pretrain={
            "classes": (0, 1, 2, 3, 4),
            "split_seed": 0,
            "epochs": 40,
            "batch": 32,
            "seed": 0,
            **OPTIM,
            "lr": 1e-3,
        },
        data={"classes": (5, 6, 7, 8, 9), "split_seed": 0},
        train={"epochs": 15, "batch": 32, "eval_batch": 32, "eval_epochs": 5},
        optim={**OPTIM, "lr": lr, **groups},
        measure=True,
        grid=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        tasks=("digits",),
        methods=METHODS,
        table={"all_methods": tuple(EVERY), "per_device": True},
        **({"search": SEARCH} if method == "glora_search" else {}),
    )


get_config = defaults.door(config)
