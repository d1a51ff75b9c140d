"""Fine-tune every method on every task with every seed, and write the table.

`python -m experiments.table --config configs/quickstart.py`
`python -m experiments.table --config configs/glue/minilm.py --tasks mrpc --seeds 3`

Finished runs are skipped, interrupted ones continued; `--force` repeats all. Any number
of processes may share one `--workdir`: each run is done by one of them, and the run of
a process that died is continued by another. Each run has a folder
`WORKDIR/TASK/METHOD-SETTINGS/seedN`, where SETTINGS is a hash: a changed configuration
starts runs of its own. `--dry-run` builds everything but reads no weights and no data,
and compares the trainable parameters with the published counts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from experiments import cli, finetune, outlook, report
from experiments.arguments import known
from experiments.claims import alone, claim
from experiments.records import digest, plain, settings, write_json
from experiments.report.runs import PLAN, REMEDY, RESULT, document

POLL_SECONDS = 5.0


def folder(workdir: Path, config: ConfigDict) -> Path:
    """Return the folder of one run."""
    place = f"{config.method}-{digest(settings(config))}"
    return workdir / config.task / place / f"seed{config.seed}"


def plan(
    config: ConfigDict,
    workdir: Path,
    configs: Sequence[ConfigDict],
    variant: str = "",
) -> None:
    """Record which runs the table is made of; workers of one table add theirs.

    Args:
        config: of the table.
        workdir: its folder.
        configs: of the runs.
        variant: what tells them from runs of other settings.
    """
    file = workdir / PLAN
    with alone(file):
        earlier = document(file, ("runs",), REMEDY)["runs"] if file.exists() else []
        runs = {run["folder"]: run for run in earlier}
        for one in configs:
            place = str(folder(workdir, one).relative_to(workdir))
            keys = ("task", "method", "seed", "selection")
            facts = {key: one[key] for key in keys}
            runs[place] = {"folder": place, **facts, "variant": variant}
        facts = {"name": config.name, "table": plain(config.table)}
        write_json(file, {**facts, "runs": list(runs.values())})


def fill(workdir: Path, configs: Sequence[ConfigDict], *, force: bool = False) -> None:
    """Do every run that nobody has done or is doing; return when all are done."""
    left = list(configs)
    if force:
        places = [folder(workdir, config) for config in configs]
        with ExitStack() as claims:
            for place in places:
                if not claims.enter_context(claim(place)):
                    raise FileExistsError(f"{place}: another process is at this run")
            for place in places:
                finetune.clear(place)
    while left:
        busy = [config for config in left if not _done(workdir, config)]
        if len(busy) == len(left):
            time.sleep(POLL_SECONDS)
        left = busy


def _done(workdir: Path, config: ConfigDict) -> bool:
    """Do the run unless it is done; return False where another process is at it."""
    place = folder(workdir, config)
    name = f"{config.task}, {config.method}, seed {config.seed}"
    with claim(place) as ours:
        if not ours:
            return False
        if (place / RESULT).exists():
            print(f"{name}: finished before", flush=True)
            return True
        result = finetune.run(config, place, resume=True)
    if result["status"] == "failed":
        print(f"{name}: FAILED: {result['error']}", flush=True)
        return True
    value = result["scores"][result["metric"]]
    seconds = result.get("seconds")
    time_taken = f" ({seconds:.1f} s)" if seconds else ""
    print(f"{name}: {result['metric']} {value:.4f}{time_taken}", flush=True)
    return True


def main() -> None:
    start, config = time.perf_counter(), CONFIG.value
    workdir = Path(WORKDIR.value or f"runs/{config.name}")
    methods = METHODS.value or config.table.methods
    names = TASKS.value or config.table.tasks
    for method in methods:
        known(method, config.table.all_methods, "method")
    for task in names:
        known(task, config.table.all_tasks, "task")
    seeds = config.table.seeds if SEEDS.value is None else range(SEEDS.value)
    runs = [(m, t, s) for m in methods for t in names for s in seeds]
    configs = [cli.configured(method=m, task=t, seed=s) for m, t, s in runs]
    if DRY_RUN.value:
        outlook.show(configs, Path(WORKDIR.value) if WORKDIR.value else None)
        return
    plan(config, workdir, configs, cli.variant())
    fill(workdir, configs, force=FORCE.value)
    report.write(workdir)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    CONFIG = cli.define_config()
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder; by default runs/NAME.")
    METHODS = flags.DEFINE_list("methods", None, "Methods; by default the table's.")
    TASKS = flags.DEFINE_list("tasks", None, "Tasks; by default the table's.")
    SEEDS = flags.DEFINE_integer(
        "seeds", None, "How many seeds, from 0.", lower_bound=1
    )
    FORCE = flags.DEFINE_bool("force", False, "Repeat finished runs.")
    DRY_RUN = flags.DEFINE_bool("dry_run", False, "Count parameters; train nothing.")
    cli.run(main)
