"""LoRA on MRPC by MiniLM, here and by the torch library: do the losses agree?

`python -m experiments.parity.mrpc_curve --data DIR --peer PYTHON`

Model, placement and data are the table's (`configs/glue/minilm.py`), with a rate and a
schedule of 50 steps of its own, batches of mixed lengths, without dropout, in float32.
`PYTHON` has torch, transformers and the torch library of adapters; it runs
`mrpc_torch.py`, which gets the pretrained weights, the first LoRA factors and head as
an adapter in that library's format, and the batches in order. Model, gradient,
clipping, schedule and AdamW are those of its own libraries.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import peftjax as pj
from configs.glue.minilm import config as minilm
from experiments import cli
from experiments.optimizer import optimizer
from experiments.records import circumstances, plain
from experiments.run import Run
from experiments.tasks.glue import model_folder
from peftjax import storage
from peftjax.data.pipeline import train_batches
from peftjax.hub.tensors import write
from peftjax.training.state import create_state

STEPS, AGREEMENT = 50, 1e-3
CURVES = ("loss", "gradient_norm")

Batches = Sequence[Mapping[str, np.ndarray]]
Adapters = Mapping[str, Mapping[str, Any]]


def setting(data: str, model: str = "", cache: str = ".cache") -> ConfigDict:
    """Return the settings of the 50 steps."""
    config = minilm(task="mrpc", method="lora", seed=0)
    config.name = "mrpc_curve"
    config.model.settings.classifier_dropout = 0.0
    config.optim = {
        "schedule": "linear",
        "lr": 1e-3,
        "weight_decay": 0.01,
        "warmup": 5,
        "clip": 1.0,
    }
    config.paths.update({"data": data, "model": model, "cache": cache})
    return config


def first_batches(one: Run, count: int = STEPS) -> Batches:
    """Return the batches of the first steps, in the order that the seed decides."""
    settings = one.config
    data = train_batches(one.data.train, settings.train.batch, seed=settings.seed)
    return [*islice(data, count)]


def start(one: Run) -> Any:
    """Return the state before the first step."""
    return create_state(
        one.peft,
        optimizer(one.config.optim, STEPS, one.steps_per_epoch),
        jax.random.key(one.config.seed),
        one.programs.mesh,
        variables=one.base,
    )


def adapters_of(one: Run, state: Any) -> Adapters:
    """Return LoRA factors and head as arrays of numpy."""
    return jax.device_get(one.peft.combine(state.trainable, state.frozen))


def train(one: Run, state: Any, batches: Batches) -> tuple[dict[str, Any], Adapters]:
    """Return the curves of one step per batch, and the adapters after the last."""
    lines = []
    for batch in batches:
        state, metrics = one.programs.step(state, one.sharded, batch)
        lines.append([metrics["loss"], metrics["grad_norm"]])
    curves = zip(CURVES, zip(*jax.device_get(lines)))
    return {name: [*map(float, c)] for name, c in curves}, adapters_of(one, state)


def train_in_torch(
    python: str, one: Run, adapters: Adapters, batches: Batches
) -> tuple[dict[str, Any], Adapters]:
    """Return what `train` does, as the other process finds it.

    Raises:
        CalledProcessError: that process failed; its error is on standard error.
    """
    settings = {"steps": STEPS, "base": os.path.abspath(model_folder(one.config))}
    columns = {
        f"{number}/{name}": column
        for number, batch in enumerate(batches)
        for name, column in batch.items()
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pj.hub.save_torch(folder / "start", one.outline.model, one.peft, adapters)
        write(folder / "batches.safetensors", columns)
        storage.write_json(
            folder / "settings.json", settings | one.config.optim.to_dict()
        )
        script = Path(__file__).with_name("mrpc_torch.py")
        subprocess.run([python, "-I", script, folder], check=True)
        found = json.loads((folder / "curves.json").read_text())
        model, base = one.outline.model, one.base
        return found, pj.hub.load_torch(folder / "end", model, base)[1]


def compare(first: Adapters, ours: Adapters, theirs: Adapters) -> dict[str, float]:
    """Return how far the trained adapters lie apart, and how far they moved."""

    def flat(adapters: Adapters) -> np.ndarray:
        leaves = (adapters[path][name] for path in ours for name in ours[path])
        return np.concatenate([np.ravel(leaf) for leaf in leaves])

    origin, here, there = map(flat, (first, ours, theirs))
    apart, moved = here - there, here - origin
    return {
        "trainable": len(here),
        "largest_difference": float(np.abs(apart).max()),
        "largest_change": float(np.abs(moved).max()),
        "norm_over_change": float(np.linalg.norm(apart) / np.linalg.norm(moved)),
    }


def draw(document: Mapping[str, Any], file: Path) -> None:
    """Draw both curves, and their difference below."""
    from matplotlib.figure import Figure

    ours, theirs = (document[side]["loss"] for side in ("ours", "torch"))
    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(2, 1))
    above.plot(ours, label="peftjax", linewidth=3, alpha=0.5)
    above.plot(theirs, "--", label="torch, peft", color="black", linewidth=1)
    above.set(ylabel="training loss", title="LoRA, rank 8, on MRPC by MiniLM-L6")
    above.legend()
    below.semilogy(np.abs(np.subtract(ours, theirs)), ".")
    below.axhline(AGREEMENT, color="grey", linestyle=":")
    below.set(xlabel="step", ylabel="|difference|")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    with storage.replacing(file) as new:
        figure.savefig(new, format="png", dpi=150)


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Train on both sides and write the curves, as the command line says."""
    parser = cli.Parser(__doc__, config=False)
    parser.flag("--data", default="data", help="TFDS's data folder")
    parser.flag("--model", default="", help="MiniLM's folder; default: the package's")
    parser.flag("--peer", required=True, help="a Python with torch")
    parser.flag(
        "--out", type=Path, default=Path("runs/mrpc_curve.json"), help="result file"
    )
    options = parser.read(argv)
    config = setting(options.data, options.model)
    one = Run(config)
    batches = first_batches(one)
    state = start(one)
    first = adapters_of(one, state)
    theirs, their_end = train_in_torch(options.peer, one, first, batches)
    ours, our_end = train(one, state, batches)
    del config.table, config.grid, config.paths
    document = {
        "steps": STEPS,
        "largest_difference": {
            name: float(np.abs(np.subtract(ours[name], theirs[name])).max())
            for name in CURVES
        },
        "adapters": compare(first, our_end, their_end),
        "ours": ours,
        "torch": theirs,
        "config": plain(config),
        "data": list(one.data.fingerprints),
        **circumstances(),
    }
    file = options.out
    storage.write_json(file, document)
    draw(document, file.with_suffix(".png"))
    print(
        f"largest difference of the loss {document['largest_difference']['loss']:.1e}"
    )
    print(f"adapters: {document['adapters']}\nWritten: {file}")


if __name__ == "__main__":
    sys.exit(main())
