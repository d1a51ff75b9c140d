"""Compare methods of equal size: a rate for each by the same budget, then one test.

`python -m experiments.paired --config configs/equal_size.py --out results/equal_size`

Each method's learning rate is chosen as `experiments.sweep` does, on examples held out
from training, over the configuration's grid and with seeds that are not the table's.
With it the method is trained by every seed and tested once, as by `experiments.table`.
Its difference from one of them, `--against`, has a bootstrap interval over seeds and
test examples, the same for both.

What is done in `--workdir` already is not repeated, and several processes may work in
one, each on `--methods` of its own. Writes `NAME.json`, `NAME.md` and `NAME.png`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import cli, sweep, table
from experiments.arguments import known
from experiments.checks import UnfitSettings, check
from experiments.paired import bootstrap, pages
from experiments.plan import folder, plan
from experiments.preemption import Stop, stop_on_signals
from experiments.programs import ProgramCache
from experiments.records import circumstances, plain, title
from experiments.run import Run
from experiments.workdir import ADAPTER, RESULT, read_result
from peftjax import storage
from peftjax.hub import files
from peftjax.training.loop import NonFiniteLoss
from peftjax.training.progress import Progress

CHOOSING = 100  # the first seed of those that rates are chosen by


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Choose, train, test and write, as the command line says."""
    options = _parser().read(argv)
    make = options.config.config
    first = make()
    tasks = options.tasks or first.table.tasks
    methods = options.methods or first.table.methods
    known(options.against, first.table.all_methods, "method")
    methods = [options.against, *(m for m in methods if m != options.against)]
    options.workdir = options.workdir or Path(f"runs/{first.name}")
    cli.keep_programs(first.paths.cache)
    cache, found = ProgramCache(), {}
    one = options.choosing * len(first.grid) + options.seeds
    with stop_on_signals() as stop, Progress(one * len(tasks) * len(methods)) as shown:
        for task in tasks:
            rows: dict[str, Any] = {}
            for method in methods:
                here = partial(make, task=task, method=method)
                rates = _rates(here, options, cache, stop, shown.tell)
                rate = best(rates)
                runs = [_at(here(seed=s), rate) for s in range(options.seeds)]
                plan(first, options.workdir, runs)
                table.fill(
                    options.workdir, runs, cache=cache, stop=stop, tell=shown.tell
                )
                own = _tested(runs, options.workdir, cache)
                rows[method] = {"rates": rates, "rate": rate, **own}
            found[task] = _compared(rows, options.against)
    result = {
        "config": plain({k: v for k, v in first.items() if k != "paths"}),
        "against": options.against,
        "seeds": {"table": options.seeds, "choosing": options.choosing},
        "draws": bootstrap.DRAWS,
        "tasks": found,
        **circumstances(),
    }
    storage.write_json(options.out.with_suffix(".json"), result)
    storage.write_text(options.out.with_suffix(".md"), pages.markdown(result))
    with storage.replacing(options.out.with_suffix(".png")) as file:
        file.write_bytes(pages.png(result))
    print(pages.markdown(result), end="")


def _parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    own = "a,b,...; by default the configuration's"
    parser.flag("--workdir", type=cli.folder, help="of the runs; by default runs/NAME")
    parser.flag("--out", type=Path, required=True, help="NAME of the three files")
    parser.flag("--tasks", type=cli.names, help=own)
    parser.flag("--methods", type=cli.names, help=own)
    parser.flag("--against", default="lora", help="the method of all differences")
    parser.flag("--seeds", type=cli.count, default=5, help="of the test, from 0")
    several = f"of each rate, from {CHOOSING}"
    parser.flag("--choosing", type=cli.count, default=3, help=several)
    return parser


def _at(config: ConfigDict, rate: float) -> ConfigDict:
    config.optim.lr = rate
    return check(config, "the grid")


def _rates(
    make: Callable[..., ConfigDict],
    options: argparse.Namespace,
    cache: ProgramCache,
    stop: Stop,
    tell: Callable[..., None],
) -> dict[float, float]:
    """Return the mean held-out score of each rate; NaN where training diverged."""
    file, found = options.workdir / "sweep.jsonl", {}
    for rate in make().grid:
        scores = []
        for seed in range(CHOOSING, CHOOSING + options.choosing):
            one = _at(make(seed=seed), rate)
            told = partial(tell, f"lr {rate:g}, {title(one)}")
            scores.append(sweep.scored(file, one, cache, stop, told))
        found[rate] = mean(scores)
    return found


def best(rates: Mapping[float, float]) -> float:
    """Return the rate of the highest score, the smaller of equals.

    Raises:
        NonFiniteLoss: training diverged at all of them.

    >>> best({1e-3: 0.5, 1e-2: 0.75, 1e-1: 0.75, 1.0: float("nan")})
    0.01
    """
    finite = {rate: score for rate, score in rates.items() if score == score}
    if not finite:
        raise NonFiniteLoss(f"diverged at every rate: {', '.join(map(str, rates))}")
    return max(finite, key=lambda rate: (finite[rate], -rate))


def _tested(
    runs: Sequence[ConfigDict], workdir: Path, cache: ProgramCache
) -> dict[str, Any]:
    """Return what the runs of one method left, and their scores on drawn examples."""
    found = [read_result(folder(workdir, run) / RESULT) for run in runs]
    if failed := [one for one in found if one["status"] == "failed"]:
        raise UnfitSettings(f"{failed[0]['method']}: failed: {failed[0]['error']}")
    outputs = []
    for run in runs:
        one = Run(run, cache)
        adapters = files.load(folder(workdir, run) / ADAPTER, one.peft, one.base)
        outputs.append(one.outputs(adapters, one.data.test))
    metric = one.outline.metric

    def score(labels: np.ndarray, outputs: np.ndarray) -> float:
        return one.outline.score(labels, outputs)[metric]

    return {
        "metric": metric,
        "parameters": found[0]["trainable_without_head"],
        "scores": [result["scores"][metric] for result in found],
        "seconds": mean(result["seconds"] for result in found if "seconds" in result),
        "drawn": bootstrap.scores(score, one.data.test["label"], np.stack(outputs)),
    }


def _compared(rows: Mapping[str, dict[str, Any]], against: str) -> dict[str, Any]:
    """Return the rows as JSON has them, each with its difference."""
    found = {}
    theirs = rows[against]["drawn"]
    for method, row in rows.items():
        mine = row.pop("drawn")
        row["rates"] = {f"{rate:g}": value for rate, value in row["rates"].items()}
        if method != against:
            row["difference"] = asdict(bootstrap.difference(mine, theirs))
        found[method] = row
    return found


if __name__ == "__main__":
    sys.exit(main())
