"""A part of FLAN v2 by LLaMA2-7B, scored on BBH: HydraLoRA's table of many tasks.

`python -m experiments.table --config configs/llm/llama_flan_bbh.py --dry-run`

Weights: `--config.paths.model=FOLDER`. Data: `--config.paths.data` holds `flan.jsonl`
(`instruction`, `output`), examples of the ten groups that the paper names, and
`bbh/*.json`. Which examples the paper drew, and how many, is not published; 50,000 are
assumed for the length of a dry run.

The recipe is that of `llama2_7b_dolly`, with ten heads, one for each group, on the
query and value projections. BBH is scored with the first three examples of a task
before each question, by the likelihood of its choices, or by the exact answer.
"""

import peftjax as pj
from configs import defaults
from configs.llm.common import rules
from configs.llm.llama2_7b_dolly import PRINTED, recipe
from experiments.arguments import known

METHODS = {
    "lora8": rules(pj.LoRA(rank=8, alpha=32.0, dropout=0.05)),
    "hydralora": rules(pj.HydraLoRA(rank=8, heads=10, alpha=32.0, dropout=0.05)),
}
PUBLISHED = {
    "file": "llm_hydralora.csv",
    "backbone": "LLaMA2-7B",
    "methods": {"lora8": "LoRA 1/1", "hydralora": "HydraLoRA 1/10"},
    "tasks": {"flan": "BBH"},
}
NOTES = {
    "lora8": PRINTED,
    "hydralora": f"23,068,672 without the router's 2,621,440, {PRINTED}",
}


def config(task: str = "flan", method: str = "hydralora", seed: int = 41):
    """Return the configuration of one run.

    Raises:
        UnknownName: an unknown task or method; the nearest valid one is named.
    """
    known(task, ["flan"], "task")
    return recipe(
        name="llama_flan_bbh",
        task=task,
        method=method,
        seed=seed,
        rules=METHODS[known(method, METHODS, "method")],
        data={"files": {"train": "flan.jsonl"}, "examples": 50_000},
        exam={"kind": "bbh", "examples": 0, "shots": 3, "steps": 32, "batch": 8},
        tasks=("flan",),
        methods=METHODS,
        table={"published": PUBLISHED, "notes": NOTES, "seeds": (41,)},
    )


get_config = defaults.door(config)
