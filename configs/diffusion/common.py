"""What the tables of Stable Diffusion 1.5 share: methods, where they are, prompts.

Every one is on queries, keys, values and outputs of the U-Net's attention; in
controllable generation on the first layer of its MLPs, too (`presets.CONTROL`), where
the released code has it. OFT has four blocks of each layer (b = 4).
"""

import csv

import peftjax as pj
from experiments.published import FOLDER
from peftjax import presets

# Features of a level of Stable Diffusion 1.5's U-Net -> its path.
LEVELS = {
    320: "(down_blocks_0|up_blocks_3)",
    640: "(down_blocks_1|up_blocks_2)",
    1280: "(down_blocks_2|up_blocks_1|mid_block)",
}
TEXT, BLOCKS = 768, 4
ATTENTION = presets.CONTROL[:4]
SIGNAL = (("signal/.*", pj.Full()),)
OPTIM = {"schedule": "constant", "weight_decay": 0.01, "warmup": 0, "clip": 1.0}


def hra(rank: int, **settings) -> pj.HRA:
    """Return HRA; an odd rank does not start at the frozen model."""
    odd = bool(rank % 2) and not settings.get("orthogonal")
    return pj.HRA(rank=rank, allow_non_identity=odd, **settings)


def adapted(method, parts=ATTENTION) -> tuple:
    """Return the rules of a method on those parts."""
    return tuple(presets.rules("unet", method, parts=parts).items())


def oft(parts=ATTENTION) -> tuple:
    """Return the rules of OFT with four blocks of each layer."""
    inner = "attn1/to_[qkv]|attn[12]/to_out|attn2/to_q"
    inner += "|ff/proj" if "up" in parts else ""
    own = {
        rf"(.*/)?{path}/.*/({inner})/kernel": pj.OFT(block=width // BLOCKS)
        for width, path in LEVELS.items()
    }
    return *own.items(), (".*/attn2/to_[kv]/kernel", pj.OFT(block=TEXT // BLOCKS))


def subjects() -> dict[str, tuple[str, str]]:
    """Return the word for its class, and whether it lives, of each subject."""
    rows = _rows("dreambooth_subjects")
    return {row["subject"]: (row["class"], row["kind"]) for row in rows}


def prompts(kind: str, name: str) -> tuple[str, ...]:
    """Return the prompts that a subject is judged by."""
    rows = _rows("dreambooth_prompts")
    return tuple(x["prompt"].format(name) for x in rows if x["kind"] == kind)


def _rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
        return [*csv.DictReader(stream)]
