"""GLUE by RoBERTa-base: the recipe of Hydra's paper (arXiv 2309.06922).

`python -m experiments.table --config configs/glue/roberta_base.py --dry-run`

Weights: `--config.paths.model=FOLDER`. Data: `--config.paths.data` is TFDS's folder
(`experiments.prepare_data glue`).

Hydra's rates, epochs, batches, decay, warm-up, length and ranks are read from
`experiments/published/hparams_hydra_glue.csv`, which is what the released scripts set;
their four devices are one batch here. AdamW, linear decay, gradients clipped at 1, the
model's own dropout; biases and LayerNorm do not decay, as in their trainer. The other
methods have no recipe there: they take Hydra's, with the rates of `RATES` where a rate
for adapters makes no sense; rank 8 and q, v for LoRA as its paper has them, alpha = 16,
and HRA's rates are ours.

Options, after `task=`, `method=` and `seed=` (the paper runs one seed, 0):

* `selection=last|best_on_validation|best_on_test`: GLUE's development set is what the
  table reports, so that `best_on_test` and `best_on_validation` both choose on it.
* `start=released|fresh`: Hydra starts on MRPC, RTE and STS-B from the adapter of an
  MNLI run, or as on the other tasks. It is the run of the same seed in the table's
  folder, or `--config.paths.start=RUN/adapter`. The heads differ in their classes, so
  the head always starts fresh.
"""

from ml_collections import ConfigDict

import peftjax as pj
from configs import defaults
from configs.defaults import EVERY
from experiments.arguments import known
from experiments.checks import SELECTIONS
from experiments.hparams import line, lines
from peftjax import presets

METRICS = {"cola": "matthews", "mnli": "accuracy_matched", "stsb": "pearson"}
TASKS = tuple(row["task"] for row in lines("hydra_glue"))
BUCKETS = (32, 64, 128, 256, 512)
MODEL = {
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "pad_token_id": 1,
    "roberta": True,
}
OTHERS = {
    "full": "full",
    "linear": "linear",
    "bitfit": "bitfit",
    "lora": pj.LoRA(rank=8, alpha=16.0),
    "dora": pj.DoRA(rank=8, alpha=16.0),
    "hydralora": pj.HydraLoRA(rank=8, alpha=16.0),
    "glora": pj.GLoRA(rank=8),
    "hra0": pj.HRA(rank=8),
    "hra_inf": pj.HRA(rank=8, orthogonal=True),
}
METHODS = (*OTHERS, "hydra")
RATES = {"full": 2e-5, "linear": 1e-3, "bitfit": 1e-3, "hra0": 3e-3, "hra_inf": 3e-3}
PUBLISHED = {
    "file": "glue_hydra.csv",
    "backbone": "RoBERTa-base",
    "methods": {
        "full": "Full tuning",
        "bitfit": "BitFit",
        "lora": "LoRA",
        "hydra": "Hydra",
    },
}


def _rules(method: str, row: dict) -> tuple:
    if method == "hydra":
        ranks = int(row["rank_parallel"]), int(row["rank_sequential"])
        adapter = pj.Hydra(rank=ranks[0], seq_rank=ranks[1], start="kaiming")
    else:
        adapter = OTHERS[method]
    parts = EVERY if method == "hydralora" else None
    return tuple(presets.rules("roberta", adapter, parts=parts).items())


def config(
    task: str = "mnli",
    method: str = "hydra",
    seed: int = 0,
    selection: str = "last",
    start: str = "released",
) -> ConfigDict:
    """Return the configuration of one run; the choices are those above.

    Raises:
        UnknownName: an unknown name; the nearest valid one is named.
    """
    known(task, TASKS, "task")
    known(method, METHODS, "method")
    known(selection, SELECTIONS, "selection")
    known(start, ["released", "fresh"], "start")
    row = line("hydra_glue", task=task)
    rules = _rules(method, row)
    mnli = row["start_from"].startswith("mnli") and method == "hydra"
    return defaults.run(
        name="glue_roberta_base",
        family="glue",
        task=task,
        method=method,
        seed=seed,
        selection=selection,
        start_from="mnli" if mnli and start == "released" else "",
        rules=rules,
        metric=METRICS.get(task, "accuracy"),
        model={"kind": "roberta", "settings": MODEL},
        **_training(method, row, rules),
        paths={"start": ""},
        grid=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
        tasks=TASKS,
        methods=METHODS,
        table={"published": PUBLISHED, "notes": {}},
    )


def _training(method: str, row: dict, rules: tuple) -> dict:
    """Return what a line of the recipes says."""
    length = int(row["max_seq_length"])
    return {
        "data": {
            "max_length": length,
            "buckets": tuple(x for x in BUCKETS if x <= length),
            "train_examples": 0,
        },
        "train": {
            "epochs": int(row["epochs"]),
            "batch": int(row["global_batch"]),
            "eval_batch": 64,
            "eval_epochs": 1,
        },
        "optim": {
            "schedule": "linear",
            "lr": RATES.get(method, float(row["learning_rate"])),
            "weight_decay": float(row["weight_decay"]),
            "warmup": float(row["warmup_ratio"]),
            "clip": 1.0,
            **defaults.no_decay(rules),
        },
    }


get_config = defaults.door(config)
