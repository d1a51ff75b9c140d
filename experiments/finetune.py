"""One run: train, evaluate, save the adapter, merge, save the merged weights.

`python -m experiments.finetune --config configs/quickstart.py:method=hra --workdir DIR`

`--resume` continues an interrupted run, `--force` deletes the folder's run and starts
again; `--config.optim.lr=1e-3` overrides a setting.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

import peftjax as pj
from experiments import cli
from experiments.benchmarks.measure import bound, forward, interleave, ratio
from experiments.pretrain import arrays, loss, optimizer, pretrained
from experiments.records import circumstances, plain, write_json
from peftjax.data import digits
from peftjax.data.pipeline import eval_batches, steps_per_epoch, train_batches
from peftjax.hub import files
from peftjax.hub.tensors import save_tree
from peftjax.parallel.mesh import make_mesh
from peftjax.training.evaluation import evaluate, make_eval
from peftjax.training.loop import train
from peftjax.training.state import create_state
from peftjax.training.step import make_step

RESULT = "result.json"


@dataclass
class Task:
    """All that the seeds of one method share; each function is compiled once."""

    config: ConfigDict

    def __post_init__(self):
        config = self.config
        self.data = digits.load(config.finetune.classes, config.split_seed)
        self.model, variables = pretrained(config)
        self.base = with_new_head(variables)
        self.peft = pj.adapt(
            self.model.apply,
            self.base,
            self.data.train.images[:1],
            rules=dict(config.methods[config.method].rules),
        )
        batch, examples = config.finetune.batch, len(self.data.train.labels)
        self.steps = config.finetune.epochs * steps_per_epoch(examples, batch)
        self.mesh = make_mesh()
        self.optimizer = optimizer(config.optim, self.steps)
        self.step = make_step(self.peft, self.optimizer, loss, self.mesh)
        self.eval_step = make_eval(self.peft, logits, self.mesh)
        self.sharded = self.step.shard_base(self.base)

    def state(self, seed: int):
        return create_state(self.peft, self.optimizer, jax.random.key(seed), self.mesh)

    def batches(self, seed: int):
        return train_batches(
            arrays(self.data.train), self.config.finetune.batch, seed=seed
        )

    def logits(self, adapters: Any, split: digits.Examples) -> np.ndarray:
        batches = eval_batches(arrays(split), self.config.finetune.batch)
        return evaluate(self.eval_step, self.sharded, adapters, batches)["logits"]

    def accuracy(self, adapters: Any, split: digits.Examples) -> float:
        found = self.logits(adapters, split).argmax(-1)
        return float((found == split.labels).mean())


def with_new_head(variables: Any) -> Any:
    """Return the variables with a head of zeros: the classes are others now."""
    params = variables["params"]
    head = jax.tree.map(jnp.zeros_like, params["head"])
    return {**variables, "params": {**params, "head": head}}


def logits(apply, batch):
    """Return the logits of each image of a batch."""
    return {"logits": apply(batch["image"])}


def run(
    task: Task, seed: int, workdir: Path, *, resume: bool = False
) -> dict[str, Any]:
    """Train one seed and leave its files and `result.json` in `workdir`."""
    start = time.perf_counter()

    def validate(state):
        adapters = task.peft.combine(state.trainable, state.frozen)
        return {"accuracy": task.accuracy(adapters, task.data.validation)}

    state = train(
        task.step,
        task.state(seed),
        task.sharded,
        task.batches(seed),
        steps=task.steps,
        workdir=workdir,
        save_every=task.steps // 3,
        evaluate=validate,
        eval_every=task.steps // 3,
        resume=resume,
    )
    adapters = jax.device_get(task.peft.combine(state.trainable, state.frozen))
    tensors, _ = files.save(workdir / "adapter", task.peft, adapters, task.base)
    metrics = {
        "test_accuracy": task.accuracy(adapters, task.data.test),
        "validation_accuracy": task.accuracy(adapters, task.data.validation),
        "merge_difference": _merge(task, adapters, workdir / "merged.safetensors"),
        "adapter_bytes": tensors.stat().st_size,
        "seconds": time.perf_counter() - start,
        **_size(task.peft),
        **_step_time(task, seed),
    }
    result = {
        "method": task.config.method,
        "seed": seed,
        "metrics": metrics,
        "config": plain(task.config),
        **circumstances(),
    }
    write_json(workdir / RESULT, result)
    return result


def clear(workdir: Path) -> None:
    """Delete what a run left in its folder, and nothing else."""
    for name in (
        "adapter.json",
        "adapter.safetensors",
        "merged.safetensors",
        "metrics.jsonl",
        RESULT,
    ):
        (workdir / name).unlink(missing_ok=True)
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)


def _merge(task: Task, adapters: Any, file: Path) -> float | None:
    """Save merged weights; return the largest difference of a logit they make."""
    try:
        merged = task.peft.merge(task.base, adapters)
    except pj.NotMergeable as error:
        print(f"{task.config.method}: no merged weights: {error}", flush=True)
        return None
    save_tree(file, merged)
    adapted = task.logits(adapters, task.data.test)
    alone = np.asarray(forward(task.model)(merged, task.data.test.images))
    return float(np.abs(adapted - alone).max())


def _size(peft: pj.Peft) -> dict[str, float]:
    trainable = sum(site.trainable for site in peft.sites)
    total = sum(leaf.size for leaf in peft.leaves.avals)
    return {"trainable": trainable, "share": trainable / total}


def _step_time(task: Task, seed: int) -> dict[str, float]:
    """Time whole training steps, optimizer included, in turn with the bound."""
    batch, state = next(task.batches(seed)), task.state(seed)

    def update():
        nonlocal state
        state, metrics = task.step(state, task.sharded, batch)
        return metrics

    frozen = bound(task.model)
    calls = {
        "bound": lambda: frozen(task.base, batch["image"], batch["label"]),
        "step": update,
    }
    seconds = interleave(calls, rounds=20)
    return {
        "step_seconds": median(seconds["step"]),
        "bound_seconds": median(seconds["bound"]),
        "step_over_bound": ratio(seconds, "step", "bound"),
    }


def main() -> None:
    config, workdir = CONFIG.value, Path(WORKDIR.value)
    if FORCE.value:
        clear(workdir)
    result = run(Task(config), config.seed, workdir, resume=RESUME.value)
    metrics = result["metrics"]
    print(f"{config.method}, seed {config.seed}: {workdir / RESULT}")
    for name, value in metrics.items():
        print(f"  {name:20} {'none' if value is None else f'{value:.6g}'}")


if __name__ == "__main__":
    CONFIG = cli.define_config()
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    RESUME = flags.DEFINE_bool("resume", False, "Continue the run in the folder.")
    FORCE = flags.DEFINE_bool("force", False, "Delete the run in the folder first.")
    cli.run(main)
