"""Does the search beat random structures of the size that it found?

`python -m experiments.search.compare --config configs/quickstart.py --seeds 5
    --beside lora,glora --workdir DIR --out results/NAME`

The runs of `glora_search`, and of the methods beside it, are done first, as by
`experiments.table` in the same folder; what is finished there is not repeated. Then, of
each seed, random structures whose parameters are within 2 % of the found one's and
within the limit are scored as the found one is: with the weights of the same supernet,
on the test split. A seed counts once, by the mean of its random structures.

Writes `NAME.json` and `NAME.md`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from experiments import cli, documents, table, tasks
from experiments.arguments import known
from experiments.checks import UnfitSettings
from experiments.plan import folder, plan
from experiments.preemption import Stop, stop_on_signals
from experiments.programs import ProgramCache
from experiments.records import circumstances, plain
from experiments.run import Run
from experiments.search.supernet import scores_of, supernet, trained
from experiments.search.work import REMEDY
from experiments.workdir import RESULT, SEARCH, SUPERNET, read_result
from peftjax import storage
from peftjax.search import Space, draw
from peftjax.training.progress import Progress

SEARCHED = "glora_search"
NEAR = 0.02  # of the found structure's parameters
ROUNDS = 1000  # of 1,000 proposals each


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, compare and write, as the command line says."""
    options = _parser().read(argv)
    make = options.config.config
    first = make(method=SEARCHED)
    for method in options.beside:
        known(method, first.table.all_methods, "method")
    methods, seeds = (SEARCHED, *options.beside), range(options.seeds)
    runs = {m: [make(method=m, seed=s) for s in seeds] for m in methods}
    every = [config for configs in runs.values() for config in configs]
    cli.keep_programs(first.paths.cache)
    plan(first, options.workdir, every, options.config.variant())
    with stop_on_signals() as stop, Progress(len(every)) as shown:
        table.fill(options.workdir, every, stop=stop, tell=shown.tell)
        rows = [
            compared(config, options.workdir, options.random, stop)
            for config in runs[SEARCHED]
        ]
    others = {m: _scores(runs[m], options.workdir) for m in options.beside}
    result = {
        "config": plain({k: v for k, v in first.items() if k != "paths"}),
        "random": options.random,
        "seeds": rows,
        "beside": others,
        **tested(rows),
        **circumstances(),
    }
    storage.write_json(options.out.with_suffix(".json"), result)
    text = shown(result)
    storage.write_text(options.out.with_suffix(".md"), text)
    print(text, end="")


def _parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    folder, several = "folder of the runs", "random structures of each seed"
    parser.flag("--workdir", type=cli.folder, required=True, help=folder)
    parser.flag("--out", type=Path, required=True, help="NAME of the two files")
    parser.flag("--beside", type=cli.names, default=(), help="a,b,...: other methods")
    parser.flag("--seeds", type=cli.count, default=5, help="how many, from 0")
    parser.flag("--random", type=cli.count, default=20, help=several)
    return parser


def compared(
    config: ConfigDict,
    workdir: Path,
    number: int,
    stop: Stop | None = None,
    mesh: Any = None,
) -> dict[str, Any]:
    """Return the test score of what one search found, and of random structures."""
    place, config = folder(workdir, config), supernet(config)
    one = Run(config, ProgramCache(mesh, update_frozen=draw), choose=True, stop=stop)
    space = Space(one.peft)
    adapters = trained(one, place / SUPERNET, stop)
    found = documents.read(place / SEARCH, documents.Search, REMEDY)
    best = max(found["archive"], key=lambda row: row["score"])
    size, limit = best["parameters"], config.search.limit
    alike = equal_in_size(space, size, limit, number, config.seed)
    test = tasks.family(config).data(config, False).test
    score = scores_of(one, space, adapters, test)
    mine, *theirs = score(np.array([best["genes"], *alike.tolist()], np.int32))
    return {
        "seed": config.seed,
        "metric": one.outline.metric,
        "parameters": best["parameters"],
        "selected_with": best["score"],
        "found": float(mine),
        "random": [float(x) for x in theirs],
        "random_parameters": space.count(alike).tolist(),
        "beaten": float(np.mean(mine > np.array(theirs))),
    }


def equal_in_size(
    space: Space, parameters: int, limit: int, number: int, seed: int
) -> np.ndarray:
    """Return random structures `[number, layers, 5]` of about so many parameters.

    Raises:
        UnfitSettings: too few of many proposals are.
    """
    rng, kept = np.random.default_rng([seed, 1]), np.empty((0, space.layers, 5), int)
    for _ in range(ROUNDS):
        genes = space.random(rng, 1000)
        counts = space.count(genes)
        near = abs(counts - parameters) <= NEAR * parameters
        kept = np.concatenate([kept, genes[near & (counts <= limit)]])
        if len(kept) >= number:
            return kept[:number]
    raise UnfitSettings(
        f"seed {seed}: {len(kept)} of {1000 * ROUNDS:,} random structures have within "
        f"{NEAR:.0%} of the found one's {parameters:,} parameters; expected {number}: "
        "give --limit, or search.limit, nearer to the mean of random ones"
    )


def _scores(configs: Sequence[ConfigDict], workdir: Path) -> dict[str, Any]:
    """Return the test scores of a method beside the search."""
    found = [read_result(folder(workdir, config) / RESULT) for config in configs]
    if failed := [one for one in found if one["status"] == "failed"]:
        raise UnfitSettings(f"{failed[0]['method']}: failed: {failed[0]['error']}")
    return {
        "scores": [one["scores"][one["metric"]] for one in found],
        "parameters": found[0]["trainable_without_head"],
    }


def tested(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the paired differences over the seeds and how sure they are."""
    found = np.array([row["found"] for row in rows])
    random = np.array([np.mean(row["random"]) for row in rows])
    differences = found - random
    several = len(rows) > 1 and bool(differences.std() > 0)
    t = stats.ttest_rel(found, random) if several else None
    ranks = stats.wilcoxon(differences) if several else None
    return {
        "difference": float(differences.mean()),
        "t_test": t and {"t": float(t.statistic), "p": float(t.pvalue)},
        "wilcoxon": ranks and {"p": float(ranks.pvalue)},
    }


def shown(result: dict[str, Any]) -> str:
    """Return the comparison as Markdown."""
    rows, config = result["seeds"], result["config"]
    lines = [
        f"# {config['task']}: the search beside random structures of its size",
        "",
        f"{rows[0]['metric']} on the test split, in percent, with the weights of each "
        f"seed's supernet; {result['random']} random structures of each seed.",
        "",
        "| seed | parameters | found | random, mean ± sd | beaten |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        spread = statistics.stdev(row["random"]) if len(row["random"]) > 1 else 0.0
        lines.append(
            f"| {row['seed']} | {row['parameters']:,} | {100 * row['found']:.1f} | "
            f"{100 * statistics.mean(row['random']):.1f} ± {100 * spread:.1f} | "
            f"{row['beaten']:.0%} |"
        )
    lines += ["", _verdict(result)]
    for method, other in result["beside"].items():
        scores = ", ".join(f"{100 * score:.1f}" for score in other["scores"])
        lines.append(
            f"\n`{method}` beside them, {other['parameters']:,} parameters: {scores}."
        )
    return "\n".join(lines) + "\n"


def _verdict(result: dict[str, Any]) -> str:
    n = len(result["seeds"])
    told = f"Found - random: {100 * result['difference']:+.2f} points over {n} seeds"
    if (t := result["t_test"]) is None:
        return f"{told}; too few for a test."
    return (
        f"{told}; paired t = {t['t']:.2f}, p = {t['p']:.3f}; Wilcoxon p = "
        f"{result['wilcoxon']['p']:.3f}."
    )


if __name__ == "__main__":
    sys.exit(main())
