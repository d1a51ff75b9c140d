"""VTAB-1k by a ViT-B/16 of ImageNet-21k: the recipes of Hydra, GLoRA and SSF.

`python -m experiments.table --config configs/vtab/vit_b16.py --dry-run`

Weights: the first release's `ViT-B_16.npz`, by `--config.paths.model=FILE`. Data:
`--config.paths.data` is TFDS's folder (`experiments.prepare_data vtab`).

| method | recipe | source |
|---|---|---|
| hydra | hparams_hydra_vtab1k.csv; 100 epochs, a cosine of 500 | Hydra's code |
| glora, glora_r2, _r4, _r8, _search | 500 epochs, batch 64, 1e-4 | GLoRA's code |
| ssf | hparams_vtab1k_baselines.csv; 100 epochs, batch 2 x 32 | SSF's code |
| fact_tt, fact_tk | rank and scale by task, same file | FacT's code |
| repadapter | rank 8, scale by task, same file; 1e-3, 1e-4 | RepAdapter's code |
| others | length and rates of FacT's script, same file | ours for these methods |

`glora` is the supernet's largest subnet at rank 4, the released default; `glora_r*` are
subnets with the forms of each layer drawn uniformly, as training the supernet draws
them: their sizes, not their scores, compare with what the paper's search finds.
`--methods glora_search` is the paper's method, a supernet and its search. LoRA and DoRA
adapt q and v, hence three matrices instead of one. Full fine-tuning has a
tenth of FacT's rate. alpha = 16 is ours. `adapter` is a bottleneck of 8 behind each MLP
and `adaptformer` one of 8 beside it, as the published sizes say. VPT has 50 prompts;
its paper chooses a length for each task, by validation, which it does not print.

Options, after `task=`, `method=` and `seed=` (the papers run one seed, 42):

* `selection=last|best_on_validation|best_on_test`: Hydra and GLoRA report the best of
  the evaluations on the test split, every tenth epoch; `last`, the default, does not.
* `placement=released|figure`: Hydra on the attention's output and the second MLP layer
  as its code, or on the latter alone as its figure.
* `period=released|run`: Hydra's cosine of 500 epochs, cut off at 100, or one of 100.

SSF reads pixels in [0, 1] where the others normalise them; its scheduler starts the
warm-up one epoch earlier than ours, which is Hydra's and GLoRA's.
"""

import random
from dataclasses import replace

from ml_collections import ConfigDict

import peftjax as pj
from configs import defaults
from configs.defaults import EVERY
from experiments.arguments import known
from experiments.checks import SELECTIONS
from experiments.hparams import line
from peftjax import presets
from peftjax.data import vtab

QV = ("query", "value")
HEAD = ("head/.*", pj.Full())
LAYERS = ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
WEIGHT = ("lora", "vector", "constant", "none")
BIAS = ("vector", "constant", "none")
FORMS = {
    "a": WEIGHT,
    "b": WEIGHT,
    "c": ("lora", "vector", "none"),
    "d": BIAS,
    "e": BIAS,
}
FACT = line("vtab1k_baselines", method="FacT", task="all")["value"].split(" / ")

OTHERS = {
    "full": "full",
    "linear": "linear",
    "bitfit": "bitfit",
    "lora": pj.LoRA(rank=8, alpha=16.0),
    "dora": pj.DoRA(rank=8, alpha=16.0),
    "hydralora": pj.HydraLoRA(rank=8, alpha=16.0),
    "hra0": pj.HRA(rank=8),
    "hra_inf": pj.HRA(rank=8, orthogonal=True),
}
PLACED = {
    "adapter": (r"blocks_\d+/mlp:output", pj.Bottleneck(rank=8, activation="gelu")),
    "adaptformer": (
        r"blocks_\d+/mlp:output",
        pj.Bottleneck(rank=8, scale=0.1, side="input", dropout=0.1),
    ),
    "vpt_shallow": ("prompts:output", pj.VPT(length=50)),
    "vpt_deep": (r"blocks_\d+/prompts:output", pj.VPT(length=50)),
}
BY_TASK = {
    "fact_tt": ("FacT-TT", pj.FacT(rank=16, width=768)),
    "fact_tk": ("FacT-TK", pj.FacT(rank=32, width=768, form="tk")),
    "repadapter": ("RepAdapter (block)", pj.RepAdapter(rank=8)),
}
METHODS = (
    *OTHERS,
    *PLACED,
    *BY_TASK,
    *("hydra", "glora", "glora_r2", "glora_r4", "glora_r8", "ssf"),
)
ALL_METHODS = (*METHODS, "glora_search")
SEARCH = {"limit": 440_000}  # of NOTES
PUBLISHED = {
    "file": "vtab1k.csv",
    "backbone": "ViT-B/16 (ImageNet-21k supervised)",
    "methods": {
        "full": "Full fine-tuning",
        "linear": "Linear probing",
        "bitfit": "BitFit",
        "lora": "LoRA",
        "hydra": "Hydra",
        "glora_search": "GLoRA",
        "ssf": "SSF",
        "adapter": "Adapter",
        "adaptformer": "AdaptFormer",
        "vpt_shallow": "VPT-Shallow",
        "vpt_deep": "VPT-Deep",
        "fact_tt": "FacT-TT",
        "fact_tk": "FacT-TK",
        "repadapter": "RepAdapter",
    },
}
_PROMPTS = "50 prompts; the paper's number of them is another for each task"
_SEARCHED = (
    "a uniform draw; all subnets average {} M, the searched ones {} M (a figure "
    "recalled, not read in the paper)"
)
NOTES = {
    "vpt_shallow": f"{_PROMPTS}, and the printed size counts the head",
    "vpt_deep": _PROMPTS,
    "repadapter": "0.02 M of biases, without which the printed 0.22 fits",
    "glora_search": f"the supernet; what is found has at most {SEARCH['limit']:,}, "
    "the 0.44 M of glora_r4",
    "glora": "largest subnet; the table prints no size of the searched ones",
    "glora_r2": _SEARCHED.format("0.31", "0.29"),
    "glora_r4": _SEARCHED.format("0.50", "0.44"),
    "glora_r8": _SEARCHED.format("0.88", "0.86"),
    "ssf": "SSF scales after LayerNorm too, 0.04 M more; papers print 0.20 to 0.22",
}


def _subnet(rank: int) -> tuple:
    """Return the rules of a subnet; a layer without any support stays frozen."""
    draw, rules = random.Random(rank), []
    for name in (f"blocks_{i}/{layer}/kernel" for i in range(12) for layer in LAYERS):
        forms = {tensor: draw.choice(forms) for tensor, forms in FORMS.items()}
        if set(forms.values()) != {"none"}:
            rules.append((name, pj.GLoRA(rank=rank, **forms)))
    return (*rules, HEAD)


def _preset(method, parts=None) -> tuple:
    return tuple(presets.rules("vit", method, parts=parts).items())


def _hydra(task: str, placement: str, period: str) -> dict:
    row = line("hydra_vtab1k", task=task)
    rank, scale, rate = int(row["rank"]), float(row["scale"]), float(row["dropout"])
    method = pj.Hydra(rank=rank, scale=scale, branch_bias=True, dropout=rate)
    parts = ("down",) if placement == "figure" else None
    return {
        "rules": _preset(method, parts),
        "lr": float(row["lr"]),
        "weight_decay": float(row["weight_decay"]),
        "batch": int(row["batch_size"]),
        "period": 500 if period == "released" else 100,
    }


def _glora(method: str) -> dict:
    largest = method in ("glora", "glora_search")
    rules = _preset(pj.GLoRA(rank=4)) if largest else _subnet(int(method[-1]))
    return {"rules": rules, "lr": 1e-4, "epochs": 500, "period": 500}


def _ssf(task: str) -> dict:
    def value(name, task=task):
        row = line("vtab1k_baselines", method="SSF", task=task, parameter=name)
        return row["value"]

    start, floor = value("warmup_lr / min_lr", "all").split(" / ")
    return {
        "rules": _preset(pj.SSF(std=0.02)),
        "lr": float(value("lr")),
        "weight_decay": float(value("weight_decay")),
        "drop_path": float(value("drop_path")),
        "epochs": int(value("epochs", "all")),
        "warmup": int(value("warmup_epochs", "all")),
        "start": float(start),
        "floor": float(floor),
        "normalisation": "unit",
    }


def _rules(task: str, method: str) -> tuple:
    if method in PLACED:
        return (PLACED[method], HEAD)
    if method in BY_TASK:
        return _preset(_by_task(task, *BY_TASK[method]))
    adapter = OTHERS[method]
    parts = QV if method in ("lora", "dora") else EVERY
    return _preset(adapter, None if isinstance(adapter, str) else parts)


def _by_task(task: str, name: str, method):
    """Return a method with the numbers that a paper's code has for a task."""

    def value(parameter):
        where = {"method": name, "task": task, "parameter": parameter}
        return line("vtab1k_baselines", **where)["value"]

    rank = int(value("rank")) if "FacT" in name else method.rank
    return replace(method, rank=rank, scale=float(value("scale")))


def _others(task: str, method: str) -> dict:
    lr, decay, epochs, warmup = FACT
    return {
        "rules": _rules(task, method),
        "lr": float(lr) / (10 if method == "full" else 1),
        "weight_decay": float(decay),
        "epochs": int(epochs),
        "warmup": int(warmup),
        "fused_qkv": method not in ("lora", "dora"),
    }


def config(
    task: str = "cifar",
    method: str = "hydra",
    seed: int = 0,
    selection: str = "last",
    placement: str = "released",
    period: str = "released",
) -> ConfigDict:
    """Return the configuration of one run; the choices are those above.

    Raises:
        UnknownName: an unknown name; the nearest valid one is named.
    """
    known(task, vtab.TASKS, "task")
    known(method, ALL_METHODS, "method")
    known(selection, SELECTIONS, "selection")
    known(placement, ["released", "figure"], "placement")
    known(period, ["released", "run"], "period")
    figure = {"hydra": "placement=figure"} if placement == "figure" else {}
    return defaults.run(
        name="vtab_vit_b16",
        family="images",
        task=task,
        method=method,
        seed=seed,
        selection=selection,
        **_training(task, _recipe(task, method, placement, period)),
        grid=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
        tasks=vtab.TASKS,
        methods=METHODS,
        **({"search": SEARCH} if method == "glora_search" else {}),
        table={
            "all_methods": ALL_METHODS,
            "groups": {name: one.group for name, one in vtab.TASKS.items()},
            "published": PUBLISHED,
            "notes": {**NOTES, **figure},
        },
    )


def _recipe(task: str, method: str, placement: str, period: str) -> dict:
    if method == "hydra":
        return _hydra(task, placement, period)
    if method == "ssf":
        return _ssf(task)
    return _glora(method) if method.startswith("glora") else _others(task, method)


def _training(task: str, own: dict) -> dict:
    """Return what a recipe says, and what all have in common."""
    epochs = own.get("epochs", 100)
    return {
        "rules": own["rules"],
        "model": {
            "image_size": 224,
            "patch_size": 16,
            "width": 768,
            "depth": 12,
            "num_heads": 12,
            "mlp_dim": 3072,
            "num_classes": vtab.TASKS[task].classes,
            "drop_path": own.get("drop_path", 0.1),
            "fused_qkv": own.get("fused_qkv", True),
        },
        "data": {
            "source": "vtab",
            "normalisation": own.get("normalisation", "imagenet"),
        },
        "train": {
            "epochs": epochs,
            "batch": own.get("batch", 64),
            "eval_batch": 64,
            "eval_epochs": 10,
        },
        "optim": {
            "schedule": "epoch_cosine",
            "lr": own["lr"],
            "weight_decay": own.get("weight_decay", 1e-4),
            "warmup": own.get("warmup", 10),
            "period": own.get("period", epochs),
            "start": own.get("start", 1e-6),
            "floor": own.get("floor", 1e-5),
        },
    }


get_config = defaults.door(config)
