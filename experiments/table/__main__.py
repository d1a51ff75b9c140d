"""Fine-tune every method on every task with every seed, and write the table.

`python -m experiments.table --config configs/quickstart.py`
`python -m experiments.table --config configs/glue/minilm.py --tasks mrpc --seeds 3`

Finished runs are skipped, interrupted ones continued; `--force` repeats all. Any number
of processes may share one `--workdir`: each run is done by one of them, and the run of
a process that died is continued by another. Each run has a folder
`WORKDIR/TASK/METHOD-SETTINGS/seedN`, where SETTINGS is a hash: a changed configuration
starts runs of its own. `--dry-run` builds everything but reads no weights and no data,
compares the trainable parameters with the published counts and names what is missing.
A run that starts from another run's adapter takes that of its method and seed in
WORKDIR. SIGTERM and Ctrl-C save a checkpoint after the present step, and the exit
status is then 75: resume me.

Of a job of several processes (`--coordinator` and so on; found by itself on Cloud TPU,
under srun and mpirun) all do each run together, over all devices. With `--per-device`
each device of the job, or each core of a CPU, does runs of its own: for runs that are
too small for a pod, or for two cores. `table.per_device` of a configuration asks for it
where there is one process.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from experiments import cli, outlook, report, starts, table
from experiments.arguments import known
from experiments.plan import plan
from experiments.preemption import stop_on_signals
from peftjax.parallel.distributed import led
from peftjax.training.progress import Progress


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Fill a table and write it, as the command line says."""
    start, parser = time.perf_counter(), _parser()
    options = parser.read(argv)
    config = options.config.config()
    workdir = options.workdir or Path(f"runs/{config.name}")
    configs = starts.linked(workdir, _runs(config, options), options.config.config)
    lacking = led(lambda: starts.missing(workdir, configs))
    if options.dry_run:
        led(lambda: outlook.show(configs, options.workdir))
        print(
            "\n".join(f"MISSING: {line}" for line in lacking), end="\n" * bool(lacking)
        )
        return
    if lacking:
        raise starts.NothingToStartFrom(lacking[0])
    cli.keep_programs(config.paths.cache)
    led(lambda: plan(config, workdir, configs, options.config.variant()))
    with stop_on_signals() as stop, Progress(len(configs)) as shown:
        if options.force:
            table.clear(workdir, configs)
        if not _per_device(options, config):
            table.fill(workdir, configs, stop=stop, tell=shown.tell)
        elif jax.default_backend() == "cpu" and jax.device_count() == 1:
            table.fill_by_core(workdir, options.config, configs, stop, shown.tell)
        else:
            table.fill_by_device(workdir, configs, stop, shown.tell)
    led(lambda: report.write(workdir))
    print(f"{time.perf_counter() - start:.0f} s")


def _parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.flag("--workdir", type=cli.folder, help="folder; by default runs/NAME")
    parser.flag(
        "--methods",
        type=cli.names,
        help="a,b,... or all; by default the configuration's",
    )
    parser.flag(
        "--tasks", type=cli.names, help="a,b,...; by default the configuration's"
    )
    parser.flag("--seeds", type=cli.count, help="how many, from 0")
    parser.flag("--force", action="store_true", help="repeat finished runs")
    parser.flag(
        "--per-device",
        action="store_true",
        help="a run on each device, or core of a CPU, at a time",
    )
    parser.flag("--dry-run", action="store_true", help="build all, train nothing")
    return parser


def _per_device(options: argparse.Namespace, config: ConfigDict) -> bool:
    wanted = config.table.get("per_device", False) and jax.process_count() == 1
    return options.per_device or wanted


def _runs(config: ConfigDict, options: argparse.Namespace) -> list[ConfigDict]:
    """Return the configuration of each run."""
    every = config.table.all_methods
    methods = options.methods or config.table.methods
    methods = every if list(methods) == ["all"] else methods
    tasks = options.tasks or config.table.tasks
    for method in methods:
        known(method, every, "method")
    for task in tasks:
        known(task, config.table.all_tasks, "task")
    seeds = range(options.seeds) if options.seeds else config.table.seeds
    runs = [(m, t, s) for m in methods for t in tasks for s in seeds]
    return [options.config.config(method=m, task=t, seed=s) for m, t, s in runs]


if __name__ == "__main__":
    sys.exit(main())
