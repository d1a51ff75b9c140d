"""Show that adapters turned into LoRAs are read by the torch library.

    python tests/references/check_converted_export.py write FOLDER
    pip install torch==2.13.0 transformers peft
    python tests/references/check_torch_export.py check FOLDER

`write` needs peftjax: it moves Hydra, HRA, DoRA, GLoRA and a composition off their
start on the tiny BERT, converts each with `to_lora` at full and at half rank, prints
how far the logits move, and writes both in the torch library's format.
"""

import shutil
import sys
from pathlib import Path

import jax
import numpy as np
from check_torch_export import BASES, inputs

import peftjax as pj
from peftjax.testing import perturb

DATA = Path(__file__).parents[1] / "files"
KERNELS = r"layers_\d+/(attention/(query|value)|intermediate)/kernel"
METHODS = {
    "hydra": (pj.Hydra(rank=2), 4),
    "hra": (pj.HRA(rank=4), 4),
    "dora": (pj.DoRA(rank=4, alpha=6.0), 32),
    "glora": (pj.GLoRA(rank=3), 32),
    "composition": (pj.Composition(modules=2, rank=2), 4),
}


def write(root: Path) -> None:
    """Convert every method and write the results under `root/torch_export/bert`."""
    shutil.copytree(DATA / "peft_checkpoints", root / "peft_checkpoints")
    model, variables = pj.models.load(root / BASES["bert"][0])
    given = inputs(root, "bert")
    for name, (method, full) in METHODS.items():
        peft = pj.adapt(model.apply, variables, **given, rules={KERNELS: method})
        adapters = perturb(peft, peft.init(jax.random.key(0)), 0.1)
        expected = jax.jit(peft.apply)(variables, adapters, **given)
        for rank in (full, full // 2):
            found = pj.to_lora(peft, adapters, rank=rank)
            lora = pj.adapt(model.apply, variables, **given, rules=found.rules)
            logits = jax.jit(lora.apply)(variables, found.adapters, **given)
            folder = root / "torch_export" / "bert" / f"{name}_{rank}"
            pj.hub.save_torch(folder, model, lora, found.adapters)
            np.savez_compressed(folder / "io.npz", logits=logits)
            moved = float(abs(logits - expected).max())
            worst = max(found.errors.values())
            print(
                f"{name:12} rank {rank:2}: logits {moved:.1e}, worst site {worst:.1e}"
            )


if __name__ == "__main__":
    if sys.argv[1:2] != ["write"] or len(sys.argv) != 3:
        sys.exit(__doc__)
    write(Path(sys.argv[2]))
