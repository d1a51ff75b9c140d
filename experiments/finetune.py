"""One run: train, evaluate, save the adapter, leave `result.json`.

`python -m experiments.finetune --config configs/quickstart.py:method=hra --workdir DIR`

`--resume` continues an interrupted run, `--force` deletes the folder's run and starts
again; `--config.optim.lr=1e-3` overrides a setting. SIGTERM and Ctrl-C save a
checkpoint after the present step, and the exit status is then 75: resume me.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments import cli, costs, kept, look, upstream
from experiments.kept import Kept
from experiments.preemption import Stop, stop_on_signals
from experiments.programs import ProgramCache
from experiments.records import circumstances, plain, title
from experiments.run import Run
from experiments.samples import scored
from experiments.selection import Selection
from experiments.trackers import trackers
from experiments.workdir import (
    ADAPTER,
    CHECKPOINTS,
    MERGED,
    METRICS,
    RESULT,
    RunFolder,
    claimed,
    finite,
)
from peftjax import storage
from peftjax.parallel.distributed import led
from peftjax.training.checkpoint import Checkpoints
from peftjax.training.loop import NonFiniteLoss, train
from peftjax.training.progress import Progress, Tell, silent

SAVE_STEPS = 500  # between checkpoints, at most


def run(
    config: ConfigDict,
    workdir: Path,
    *,
    resume: bool = False,
    force: bool = False,
    cache: ProgramCache | None = None,
    stop: Stop | None = None,
    tell: Tell = silent,
) -> dict[str, Any]:
    """Train one seed and leave its files and `result.json` in `workdir`.

    A run whose loss is not finite leaves a result too, with the status `failed`.

    Args:
        config: of the run.
        workdir: the run's folder; see `experiments.workdir`.
        resume: continue the folder's run, or return its result.
        force: delete the folder's run first.
        cache: of the programs of other runs.
        stop: asked after each step; True saves a checkpoint and raises `Preempted`.
        tell: told what is being done; see `peftjax.training.progress`.

    Raises:
        Busy: another process is at this run.
        FileExistsError: the folder holds a run and `resume` is off, one of other
            settings, or files that are no run's.
        DamagedFile: a file of the run is not whole.
        Preempted: it was asked to stop, and can be resumed.
    """
    with claimed(workdir, wait=True) as folder:
        if force:
            folder.clear()
        return work(config, folder, resume=resume, cache=cache, stop=stop, tell=tell)


def work(
    config: ConfigDict,
    folder: RunFolder,
    *,
    resume: bool,
    cache: ProgramCache | None = None,
    stop: Stop | None = None,
    tell: Tell = silent,
) -> dict[str, Any]:
    """Do a run in a folder that is claimed; see `run`."""
    stop = folder.asking(stop)
    finished = led(lambda: folder.held(config, resume))
    if finished:
        return finished
    tell("preparing data and weights")
    one = Run(config, cache, stop=stop)
    folder.begin(config)
    names = ("name", "task", "method", "seed", "selection")
    common = {
        **{key: config[key] for key in names},
        "metric": one.outline.metric,
        "note": one.outline.note,
        "data": list(one.data.fingerprints),
        "examples": {
            "train": len(one.data.train["label"]),
            "reported": len(one.data.test["label"]),
        },
        "majority": costs.majority(one.data.test["label"]),
        "config": plain(config),
        **circumstances(),
    }
    try:
        found = _trained(one, folder, resume, stop, tell)
    except NonFiniteLoss as error:
        result = {"status": "failed", "error": error.what, **common}
    else:
        result = {"status": "finished", **found, **common}
    folder.own(RESULT)
    led(lambda: storage.write_json(folder.path / RESULT, result))
    folder.drop(CHECKPOINTS)
    return result


def _trained(
    one: Run, folder: RunFolder, resume: bool, stop: Stop | None, tell: Tell
) -> dict[str, Any]:
    place = folder.path
    whole = led(lambda: Checkpoints(place / CHECKPOINTS).latest() is None)
    start = time.perf_counter()
    if any(one.peft.trainable.values()):
        step, chosen = _learned(one, folder, resume, stop, tell)
    else:  # modules put together by given weights
        step, chosen = 0, Kept(jax.device_get(one.start()), {})
    tell("testing")
    adapters = chosen.adapters
    size = kept.save(one, folder, ADAPTER, chosen)
    scores = scored(one, folder, chosen, one.data.test, "test")
    scores |= one.examined(adapters, lambda done: tell(f"examining, {done} done"))
    found: dict[str, Any] = {
        "scores": finite(scores),
        # Of a run that was interrupted nobody counted the first part.
        **({"seconds": time.perf_counter() - start} if whole else {}),
        "selected_step": step,
        "adapter_bytes": size,
        **costs.size(one.peft),
    }
    if one.modules:
        found |= {
            "upstream": one.modules,
            "mixture": upstream.mixture(one.peft, adapters),
            **one.weighed,
        }
    if one.config.get("look"):
        tell("looking")
        found |= look.leave(one, folder, chosen)
    if one.config.get("measure"):
        tell("measuring")
        folder.own(MERGED)
        found |= costs.merge(one, adapters, place / MERGED)
        if found["merge_difference"] is None:
            folder.drop(MERGED)
        found |= costs.step_time(one)
    return found


def _learned(
    one: Run, folder: RunFolder, resume: bool, stop: Stop | None, tell: Tell
) -> tuple[int, Kept]:
    """Train; return the step that is reported and what is kept of it."""
    selection = Selection(one, folder)
    folder.own(CHECKPOINTS, METRICS)
    state = train(
        one.programs.step,
        one.state(),
        one.sharded,
        one.batches(),
        steps=one.steps,
        workdir=folder.path,
        save_every=min(selection.every, SAVE_STEPS),
        evaluate=selection.watch(),
        eval_every=selection.every,
        resume=resume,
        stop=stop,
        trackers=trackers(one.config, folder),
        tell=tell,
    )
    return selection.chosen(Kept(*jax.device_get(Kept.of(one, state))))


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Do one run, as the command line says."""
    parser = cli.Parser(__doc__)
    parser.flag("--workdir", type=cli.folder, required=True, help="folder of the run")
    parser.flag("--resume", action="store_true", help="continue the folder's run")
    parser.flag("--force", action="store_true", help="delete the folder's run first")
    options = parser.read(argv)
    if options.resume and options.force:
        parser.error("--resume and --force: give one of them")
    config = options.config.config()
    cli.keep_programs(config.paths.cache)
    with stop_on_signals() as stop, Progress() as shown:
        result = run(
            config,
            options.workdir,
            resume=options.resume,
            force=options.force,
            stop=stop,
            tell=partial(shown.tell, title(config)),
        )
    _show(config, options.workdir / RESULT, result)
    if result["status"] == "failed":
        raise SystemExit(f"the run failed: {result['error']}")


def _show(config: ConfigDict, file: Path, result: dict[str, Any]) -> None:
    print(f"{title(config)}: {file}")
    for name, value in {**result, **result.get("scores", {})}.items():
        if isinstance(value, int | float | str):
            shown = f"{value:.6g}" if isinstance(value, float) else value
            print(f"  {name:20} {shown}")


if __name__ == "__main__":
    sys.exit(main())
