"""Modules of groups of BBH's tasks on FLAN-T5-large, composed by 5 examples of a task.

    python -m experiments.table --config configs/llm/composition_flan_t5.py --dry-run

The table of `composition_bbh` on the model of both papers (arXiv 2402.15414 and
2307.13269). A module is LoraHub's: rank 16, alpha 32, dropout 0.1, on q and v of both
stacks, in the decoder of both attentions, at its rate. Their modules of FLAN's tasks
are not here, nor is what the first paper's were; groups, epochs and the other rates are
those of `composition_bbh`. Answers are exact, as in LoraHub's code. Weights:
`--config.paths.model=FOLDER`; modules are runs of this file for each group, in
`--config.paths.upstream`.
"""

from typing import Any

from ml_collections import ConfigDict

import peftjax as pj
from configs import defaults
from configs.llm import composition_bbh as bbh
from configs.llm.common import rules

FLAN_T5_LARGE = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 1024,
    "d_kv": 64,
    "d_ff": 2816,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "num_heads": 16,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "scale_decoder_outputs": False,
}
LORA = pj.LoRA(rank=bbh.RANK, alpha=2.0 * bbh.RANK, dropout=0.1)
METHODS: dict[str, tuple[float, Any]] = {**bbh.METHODS, "lora": (2e-4, LORA)}


def config(task: str = "navigate", method: str = "lora", seed: int = 0) -> ConfigDict:
    """Return the configuration of one run.

    Raises:
        UnknownName: an unknown task or method; the nearest valid one is named.
    """
    found = bbh.config(task, method, seed)
    found.name = "composition_flan_t5"
    lr, adapter = METHODS[method]
    found.optim.lr, found.rules = lr, rules(adapter, family="t5")
    found.model.settings = dict(FLAN_T5_LARGE)
    found.data.update({"template": "source", "eos": "</s>"})
    upstream = "runs/flan_t5" if found.paths.upstream else ""
    found.paths.update({"package": "", "upstream": upstream})
    return found


get_config = defaults.door(config)
