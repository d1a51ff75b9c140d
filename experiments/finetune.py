"""One run: train, evaluate, save the adapter, leave `result.json`.

`python -m experiments.finetune --config configs/quickstart.py:method=hra --workdir DIR`

`--resume` continues an interrupted run, `--force` deletes the folder's run and starts
again; `--config.optim.lr=1e-3` overrides a setting.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

import peftjax as pj
from experiments import cli, tasks
from experiments.arguments import known
from experiments.costs import merge, size, step_time
from experiments.optimizer import optimizer
from experiments.records import circumstances, digest, plain, settings, write_json
from experiments.report.runs import REMEDY, RESULT, document
from experiments.tasks.task import Data, Outline
from peftjax.data.pipeline import eval_batches, steps_per_epoch, train_batches
from peftjax.hub import files
from peftjax.parallel.mesh import make_mesh
from peftjax.training.checkpoint import Checkpoints
from peftjax.training.evaluation import evaluate, make_eval
from peftjax.training.loop import NonFiniteLoss, train
from peftjax.training.metrics import read_metrics
from peftjax.training.state import create_state
from peftjax.training.step import make_step

SETTINGS = "settings.json"
SELECTIONS = ("last", "best_on_validation", "best_on_test")
# What a run leaves behind, besides its checkpoints.
LEFT = ("adapter", "best", "merged")


@dataclass(frozen=True)
class Programs:
    """What every run of one model and one method setting shares, compiled once."""

    peft: pj.Peft
    mesh: Any
    step: Any
    eval_step: Any


def programs(config: ConfigDict, outline: Outline) -> Programs:
    """Return the compiled programs; weights, seed and learning rate are arguments."""
    key = outline.model, outline.loss, digest(config.rules, _shape_of(config.optim))
    if key not in _PROGRAMS:
        if any(other[2] != key[2] for other in _PROGRAMS):
            _PROGRAMS.clear()  # a table goes method by method; keep memory flat
        example = outline.example
        peft = pj.adapt(
            outline.model.apply, outline.abstract(), *example, rules=dict(config.rules)
        )
        mesh = make_mesh()
        descent = optimizer(config.optim, 2, 1)
        _PROGRAMS[key] = Programs(
            peft,
            mesh,
            make_step(peft, descent, outline.loss, mesh),
            make_eval(peft, outline.outputs, mesh),
        )
    return _PROGRAMS[key]


_PROGRAMS: dict[Any, Programs] = {}


def _shape_of(optim: ConfigDict) -> dict[str, Any]:
    """Return the settings that are constants of the program."""
    data = ("lr", "warmup")
    return {key: value for key, value in optim.items() if key not in data}


class Run:
    """One task, method and seed, ready to train.

    Args:
        config: of the run.
        choose: hyperparameters are being chosen: the test split is not read.
    """

    def __init__(self, config: ConfigDict, *, choose: bool = False):
        family = tasks.family(config)
        self.config = config
        self.outline: Outline = family.outline(config)
        self.data: Data = family.data(config, choose)
        self.base = family.base(config, self.outline)
        self.programs = programs(config, self.outline)
        self.peft = self.programs.peft
        self.steps_per_epoch = steps_per_epoch(
            len(self.data.train["label"]), config.train.batch
        )
        self.steps = config.train.epochs * self.steps_per_epoch
        self.optimizer = optimizer(config.optim, self.steps, self.steps_per_epoch)
        self.sharded = self.programs.step.shard_base(self.base)

    def state(self) -> Any:
        return create_state(
            self.peft,
            self.optimizer,
            jax.random.key(self.config.seed),
            self.programs.mesh,
            variables=self.base,
            adapters=_started(self) if self.config.get("start_from") else None,
        )

    def batches(self) -> Any:
        return train_batches(
            self.data.train,
            self.config.train.batch,
            seed=self.config.seed,
            lengths=self.data.lengths,
        )

    def outputs(self, adapters: Any, split: Mapping[str, Any]) -> Any:
        """Return logits or scores `[N, ...]` of a split."""
        batches = eval_batches(split, self.config.train.eval_batch)
        found = evaluate(self.programs.eval_step, self.sharded, adapters, batches)
        return found["outputs"]

    def score(self, adapters: Any, split: Mapping[str, Any]) -> dict[str, float]:
        """Return all metrics of a split."""
        return self.outline.score(split["label"], self.outputs(adapters, split))

    def watched(self) -> tuple[str, Mapping[str, Any] | None]:
        """Return the split that is looked at during training, and its name."""
        if known(self.config.selection, SELECTIONS, "selection") == "best_on_test":
            return "test", self.data.test
        return "validation", self.data.validation


def _started(one: Run) -> Any:
    """Return the adapters of a run of the task `start_from`, and this run's own head.

    Raises:
        FileNotFoundError: `paths.start` names no adapter file.
        AdapterFileError: it is of another model or of other rules.
    """
    config = ConfigDict(one.config)
    config.task, config.metric = one.config.start_from, ""
    place = one.config.paths.start
    if not place:
        raise FileNotFoundError(
            f"{config.name}, {one.config.task}: starts from the adapter of a run of "
            f"{config.task}: give --config.paths.start=RUN/adapter, or start=fresh"
        )
    other: Outline = tasks.family(config).outline(config)
    example, rules = other.example, dict(config.rules)
    peft = pj.adapt(other.model.apply, other.abstract(), *example, rules=rules)
    found = files.load(place, peft)
    own = one.peft.init(jax.random.key(one.config.seed), one.base)
    # `Full` is the head here; another task's has other classes.
    heads = {site.path for site in one.peft.sites if isinstance(site.method, pj.Full)}
    return {path: own[path] if path in heads else found[path] for path in own}


def run(config: ConfigDict, workdir: Path, *, resume: bool = False) -> dict[str, Any]:
    """Train one seed and leave its files and `result.json` in `workdir`.

    A run whose loss is not finite leaves a result too, with the status `failed`.

    Raises:
        FileExistsError: the folder holds a run and `resume` is off, or one of other
            settings.
    """
    finished = _begin(config, workdir, resume)
    if finished:
        return finished
    one = Run(config)
    common = {
        **{key: config[key] for key in ("name", "task", "method", "seed", "selection")},
        "metric": one.outline.metric,
        "note": one.outline.note,
        "data": list(one.data.fingerprints),
        "config": plain(config),
        **circumstances(),
    }
    try:
        found = _trained(one, workdir, resume)
    except NonFiniteLoss as error:
        result = {"status": "failed", "error": error.what, **common}
    else:
        result = {"status": "finished", **found, **common}
    write_json(workdir / RESULT, result)
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
    return result


def _begin(config: ConfigDict, workdir: Path, resume: bool) -> dict[str, Any]:
    """Note the settings in the folder; return the result of a run finished there."""
    names = {key: config[key] for key in ("name", "task", "method", "seed")}
    own = _flat(plain({**names, **settings(config)}))
    file, checkpoints = workdir / SETTINGS, Checkpoints(workdir / "checkpoints")
    held = (workdir / RESULT).exists() or checkpoints.latest() is not None
    if held and not resume:
        raise FileExistsError(
            f"{workdir}: holds a run; --resume, or --force deletes it"
        )
    if held:
        other = document(file, (), REMEDY) if file.exists() else {}
        lines = [
            f"{key}: expected {own.get(key)!r}, found {other.get(key)!r}"
            for key in sorted({**own, **other})
            if own.get(key) != other.get(key)
        ]
        if lines:
            raise FileExistsError(
                f"{file}: the folder's run is of other settings; give those, another "
                "--workdir, or --force, which deletes it\n  " + "\n  ".join(lines)
            )
    write_json(file, own)
    if (workdir / RESULT).exists():
        return document(workdir / RESULT, ("status",), REMEDY)
    return {}


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested settings by their path, `optim.lr` for one."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    parts = (_flat(x, f"{prefix}.{key}" if prefix else key) for key, x in tree.items())
    return {key: value for part in parts for key, value in part.items()}


def _trained(one: Run, workdir: Path, resume: bool) -> dict[str, Any]:
    whole = Checkpoints(workdir / "checkpoints").latest() is None
    start = time.perf_counter()
    every = one.steps_per_epoch * one.config.train.eval_epochs
    state = train(
        one.programs.step,
        one.state(),
        one.sharded,
        one.batches(),
        steps=one.steps,
        workdir=workdir,
        save_every=every,
        evaluate=_watch(one, workdir),
        eval_every=every,
        resume=resume,
    )
    adapters = jax.device_get(one.peft.combine(state.trainable, state.frozen))
    step = one.steps
    if one.config.selection != "last":
        step = _best(one, workdir)[0] or one.steps
        adapters = files.load(workdir / "best", one.peft, one.base)
    tensors, _ = files.save(workdir / "adapter", one.peft, adapters, one.base)
    scores = one.score(adapters, one.data.test)
    found: dict[str, Any] = {
        "scores": scores,
        # Of a run that was interrupted nobody counted the first part.
        **({"seconds": time.perf_counter() - start} if whole else {}),
        "selected_step": step,
        "adapter_bytes": tensors.stat().st_size,
        **size(one.peft),
    }
    if one.config.get("measure"):
        found |= merge(one, adapters, workdir / "merged.safetensors")
        found |= step_time(one)
    return found


def _watch(one: Run, workdir: Path) -> Any:
    """Return the evaluation during training; it keeps the best adapters so far."""
    name, split = one.watched()
    if split is None:
        return None

    def watch(state: Any) -> dict[str, float]:
        adapters = one.peft.combine(state.trainable, state.frozen)
        scores = one.score(adapters, split)
        if one.config.selection != "last":
            _, best = _best(one, workdir)
            if best is None or scores[one.outline.metric] > best:
                files.save(workdir / "best", one.peft, adapters, one.base)
        return {f"{name}_{key}": value for key, value in scores.items()}

    return watch


def _best(one: Run, workdir: Path) -> tuple[int, float | None]:
    """Return step and score of the best evaluation so far, the first of equals.

    A score that is not finite is none.
    """
    key, file = f"{one.watched()[0]}_{one.outline.metric}", workdir / "metrics.jsonl"
    lines = read_metrics(file) if file.exists() else []
    scores = {line["step"]: line["eval"][key] for line in lines if "eval" in line}
    scores = {step: score for step, score in scores.items() if math.isfinite(score)}
    if not scores:
        return 0, None
    step = max(scores, key=lambda step: (scores[step], -step))
    return step, scores[step]


def clear(workdir: Path) -> None:
    """Delete what a run left in its folder, and nothing else."""
    names = [f"{name}.{kind}" for name in LEFT for kind in ("json", "safetensors")]
    # The result first: a run that has one is finished.
    for name in (RESULT, *names, "metrics.jsonl", SETTINGS):
        (workdir / name).unlink(missing_ok=True)
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)


def main() -> None:
    config, workdir = CONFIG.value, Path(WORKDIR.value)
    if FORCE.value:
        clear(workdir)
    result = run(config, workdir, resume=RESUME.value)
    print(f"{config.task}, {config.method}, seed {config.seed}: {workdir / RESULT}")
    for name, value in {**result, **result.get("scores", {})}.items():
        if isinstance(value, int | float | str):
            print(
                f"  {name:20} {value:.6g}"
                if isinstance(value, float)
                else f"  {name:20} {value}"
            )
    if result["status"] == "failed":
        sys.exit(f"the run failed: {result['error']}")


if __name__ == "__main__":
    CONFIG = cli.define_config()
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    RESUME = flags.DEFINE_bool("resume", False, "Continue the run in the folder.")
    FORCE = flags.DEFINE_bool("force", False, "Delete the run in the folder first.")
    cli.run(main)
