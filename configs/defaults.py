"""What configurations share, so that each states only what differs.

A configuration is a function with keyword choices, `config(task=..., method=...,
seed=0)`, that returns what `run` makes of them; `get_config = door(config)` is what
`--config FILE:task=...,method=...` asks. `own_images` and `own_text` are whole
configurations for data of your own (`configs/examples`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

import peftjax as pj
from experiments.arguments import door as door
from experiments.arguments import known
from peftjax import presets

SEEDS = (0, 1, 2)
# Copies of the base, and devices over which each is split: 0 is as many as there are.
PARALLEL = {"data": 0, "fsdp": 1, "accumulate": 1}
# Of families whose base is large beside its activations: one copy, split over all.
SPLIT = {"llm": {"data": 1, "fsdp": 0}}
PATHS = {"cache": ".cache", "data": "data", "model": ""}
EVERY = ("query", "key", "value", "output", "up", "down")

_ADALORA = pj.AdaLoRA(
    rank=12, alpha=16.0, target_rank=8, warmup=0.1, final=0.3, every=10
)
# Method and learning rate: where to start from; `experiments.sweep` chooses better.
METHODS: dict[str, tuple[Any, float]] = {
    "full": ("full", 3e-5),
    "linear": ("linear", 1e-3),
    "bitfit": ("bitfit", 1e-3),
    "lora": (pj.LoRA(rank=8, alpha=16.0), 5e-4),
    "dora": (pj.DoRA(rank=8, alpha=16.0), 5e-4),
    "adalora": (_ADALORA, 1e-3),
    "hydra": (pj.Hydra(rank=8), 1e-3),
    "hydralora": (pj.HydraLoRA(rank=8, alpha=16.0), 5e-4),
    "glora": (pj.GLoRA(rank=8), 5e-4),
    "hra": (pj.HRA(rank=8), 3e-3),
    "oft": (pj.OFT(block=8), 1e-3),
    "ssf": (pj.SSF(), 1e-3),
    "ia3": (pj.IA3(), 3e-3),
}
# What the trainers of the GLUE papers leave out of the weight decay.
NO_DECAY = (r".*(bias|norm\w*/scale)(/value)?",)
SEARCHED = "glora_search"  # a supernet and its search, where a configuration has one
GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
# Of `own_images`: a DINOv2 ViT-S/14 whose weights may be stored in fewer bits.
DINOV2_SMALL = {
    "architecture": "dinov2",
    "options": {"dtype": "float32"},
    "data": {"size": 98},
}


def run(
    *,
    tasks: Iterable[str],
    methods: Iterable[str],
    paths: Mapping[str, Any] | None = None,
    table: Mapping[str, Any] | None = None,
    parallel: Mapping[str, int] | None = None,
    **settings: Any,
) -> ConfigDict:
    """Return the configuration of one run.

    Args:
        tasks: of the table, in the order of its columns.
        methods: of the table, in the order of its rows.
        paths: beside or instead of `PATHS`.
        table: what else `table` holds.
        parallel: beside or instead of `PARALLEL`, or of the family's `SPLIT`.
        **settings: all others; `selection` is `"last"` unless given, `trackers` none.
    """
    tasks, methods = tuple(tasks), tuple(methods)
    return ConfigDict(
        {
            "selection": "last",
            "trackers": (),
            **settings,
            "parallel": {
                **PARALLEL,
                **SPLIT.get(settings.get("family", ""), {}),
                **(parallel or {}),
            },
            "paths": {**PATHS, **(paths or {})},
            "table": {
                "methods": methods,
                "all_methods": methods,
                "tasks": tasks,
                "all_tasks": tasks,
                "seeds": SEEDS,
                "per_device": False,
                **(table or {}),
            },
        }
    )


def no_decay(rules: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the setting of `optim` that keeps biases and LayerNorm from decaying.

    Args:
        rules: of the run; where they train no leaf of the model, nothing is left out.
    """
    trained = any(isinstance(method, pj.Full) for _, method in rules)
    return {"no_decay": NO_DECAY} if trained else {}


def own_images(
    task: str,
    method: str,
    seed: int,
    model: str,
    architecture: str = "vit",
    options: Mapping[str, Any] | None = None,
    **given: Any,
) -> Any:
    """Return the configuration of your own images on a ViT or a DINOv2.

    Args:
        task: the folder `<class>/<image>` under `paths.data`, or the npz file or the
            data set of TFDS there; `data={"set": NAME}` names another.
        method: one of `METHODS`.
        seed: of the run; the split has its own, `data.split_seed`.
        model: the checkpoint, as `pj.models.load` takes it.
        architecture: of the checkpoint, as `peftjax.presets.rules` calls it.
        options: for `pj.models.load`, `dtype` for one.
        **given: other settings, `optim={"lr": 1e-3}` for one; see below, and
            `experiments.tasks.own_images` for `data={"shots": 4}`. With
            `search`, of `experiments.search`, there is a method `glora_search`.
    """
    settings = {
        "name": "own_images",
        "data": {"normalisation": "imagenet", "split_seed": 0},
        "train": {"epochs": 20, "batch": 32, "eval_batch": 64, "eval_epochs": 5},
        "optim": {"schedule": "cosine", "weight_decay": 1e-4, "warmup": 0.1},
    }
    given["model"] = dict(options or {})
    return _own("images", architecture, task, method, seed, model, settings, given)


def own_text(task: str, method: str, seed: int, model: str, **given: Any) -> Any:
    """Return the configuration of your own labelled texts on an encoder.

    Args:
        task: the table under `paths.data`, without `.csv`, `.tsv`, `.jsonl` or
            `.parquet`.
        method: one of `METHODS`.
        seed: of the run; the split has its own, `data.split_seed`.
        model: the checkpoint's folder, with its tokenizer.
        **given: other settings; `data={"text": ("question", "answer"), "label": "is"}`
            names the columns.
    """
    settings = {
        "name": "own_text",
        "data": {
            "text": "text",
            "label": "label",
            "max_length": 128,
            "buckets": (16, 32, 64, 128),
            "split_seed": 0,
        },
        "train": {"epochs": 5, "batch": 32, "eval_batch": 64, "eval_epochs": 1},
        "optim": {
            "schedule": "linear",
            "weight_decay": 0.01,
            "warmup": 0.06,
            "clip": 1.0,
        },
    }
    return _own("text", "bert", task, method, seed, model, settings, given)


def _own(kind, family, task, method, seed, model, settings, given) -> ConfigDict:
    searched = (SEARCHED,) if "search" in given else ()
    known(method, (*METHODS, *searched), "method")
    if method != SEARCHED:
        given.pop("search", None)
    adapter, lr = METHODS["glora" if method == SEARCHED else method]
    settings["optim"]["lr"] = lr
    # A pooler that the checkpoint lacks is drawn like the classifier, and has to learn.
    head = {"classifier/.*": "(pooler|classifier)/.*"}
    rules = presets.rules(family, adapter).items()
    merged = {
        "family": f"own_{kind}",
        **{"task": task, "method": method, "seed": seed},
        "rules": tuple((head.get(pattern, pattern), m) for pattern, m in rules),
        "model": {},
        "grid": GRID,
        "paths": {"model": model},
        **settings,
    }
    for key, value in given.items():
        group = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = {**merged[key], **value} if group else value
    table = {"all_methods": (*METHODS, *searched)}
    return run(**{"tasks": (task,), "methods": METHODS, "table": table, **merged})
