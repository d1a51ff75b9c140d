"""MetaMathQA by LLaMA2-7B, scored on GSM8K: HRA's table (arXiv 2405.17484).

`python -m experiments.table --config configs/llm/llama2_7b_metamath.py --dry-run`

Weights: `--config.paths.model=FOLDER`. Data: `--config.paths.data` holds
`MetaMathQA.jsonl` (`query`, `response`) and `gsm8k/test.jsonl`.

Query and value projections, rank 32, Alpaca's prompt, 512 tokens, two epochs of the
first 100,000 rows in batches of 32, AdamW without decay, cosine after 0.5 % of warm-up,
bfloat16; rates by penalty as the paper has them (1e-5, 3e-5, 1e-3). Reflections act on
a layer's input, as in the paper; the released script of this experiment puts them on
the output, with 1e-4 under the norm's root and another start
(`pj.HRA(side="output", eps=1e-4)`). LoRA's and OFT's rates are not published: 1e-5.
"""

from ml_collections import ConfigDict

import peftjax as pj
from configs import defaults
from configs.llm.common import LLAMA2_7B, llm, rules
from experiments.arguments import known

METHODS = {
    "lora": (1e-5, rules(pj.LoRA(rank=32, alpha=32.0))),
    "oft": (1e-5, rules(pj.OFT(block=16))),
    "hra0": (1e-5, rules(pj.HRA(rank=32))),
    "hra_lambda": (3e-5, rules(pj.HRA(rank=32, penalty_weight=1e-4))),
    "hra_inf": (1e-3, rules(pj.HRA(rank=32, orthogonal=True))),
}
PUBLISHED = {
    "file": "llm_hra.csv",
    "backbone": "LLaMA2-7B",
    "methods": {
        "lora": "LoRA r=32",
        "oft": "OFT b=16",
        "hra0": "HRA r=32 lambda=0",
        "hra_lambda": "HRA r=32 lambda=1e-4",
        "hra_inf": "HRA r=32 lambda=inf",
    },
    "tasks": {"metamath": "GSM8K"},
}
NOTES = {
    "lora": "printed as a percentage of two digits",
    "oft": "blocks of 16 of these layers do not explain the printed percentage",
}


def config(task: str = "metamath", method: str = "hra0", seed: int = 0) -> ConfigDict:
    """Return the configuration of one run.

    Raises:
        UnknownName: an unknown task or method; the nearest valid one is named.
    """
    known(task, ["metamath"], "task")
    lr, own = METHODS[known(method, METHODS, "method")]
    return llm(
        name="llama2_7b_metamath",
        task=task,
        method=method,
        seed=seed,
        rules=own,
        model={"settings": LLAMA2_7B, "dtype": "bfloat16", "remat": True},
        data={
            "files": {"train": "MetaMathQA.jsonl"},
            "columns": {"instruction": "query", "output": "response"},
            "template": "alpaca",
            "eos": "</s>",
            "max_length": 512,
            "buckets": (128, 192, 256, 384, 512),
            "train_examples": 100_000,
            "examples": 100_000,
        },
        train={"epochs": 2, "batch": 32, "eval_batch": 32, "eval_epochs": 1},
        optim={"schedule": "cosine", "lr": lr, "weight_decay": 0.0, "warmup": 0.005},
        exam={"kind": "gsm8k", "examples": 0, "shots": 0, "steps": 1024, "batch": 32},
        grid=(1e-5, 3e-5, 1e-4, 1e-3),
        tasks=("metamath",),
        methods=METHODS,
        table={"published": PUBLISHED, "notes": NOTES, "seeds": (0,)},
    )


get_config = defaults.door(config)
