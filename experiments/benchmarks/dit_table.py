"""The table of a small DiT's new digits, and the picture beside it.

`python -m experiments.benchmarks.dit_table runs/dit_digits`

reads what `experiments.table --config configs/diffusion/dit_digits.py` left in the
folder and draws, from the noise of the test split, what the base makes of the digits
that it never saw. `dit_digits.json`, `.md` and `.png` are written into `--out`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs.diffusion import dit_digits
from experiments import cli, samples
from experiments.measure import plain
from experiments.records import circumstances
from experiments.report.runs import read
from experiments.tasks import diffusion
from peftjax import storage
from peftjax.data.pipeline import eval_batches
from peftjax.training.evaluation import evaluate

NAME, SCORES = "dit_digits", ("accuracy", "frechet")
FACTS = ("trainable", "share", "adapter_bytes")


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Read the runs, draw the base's digits, write, as the command line says."""
    parser = cli.Parser(__doc__, config=False)
    parser.add_argument("DIR", type=cli.folder, help="the --workdir of the table")
    parser.flag("--out", type=Path, default=Path("results"), help="folder")
    options = parser.read(argv)
    rows = methods(options.DIR)
    config = dit_digits.config()
    drawn, scores = unadapted(config)
    rows = [{"method": "base", "seeds": [], **scores}, *rows]
    found = {
        "name": NAME,
        "rows": rows,
        "reference": reference(config),
        "note": diffusion.outline(config).note,
        **circumstances(),
    }
    storage.write_json(options.out / f"{NAME}.json", found)
    storage.write_text(options.out / f"{NAME}.md", markdown(found))
    samples.write(options.out / f"{NAME}.png", drawn)
    print(markdown(found))


def methods(workdir: Path) -> list[dict[str, Any]]:
    """Return a row for each method: its scores by seed, its facts, its rate.

    Raises:
        ValueError: a run has no score yet.
    """
    _, runs = read(workdir)
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run.abandoned:
            continue
        if run.score is None:
            raise ValueError(f"{workdir}: {run.method}, seed {run.seed}: no score yet")
        result = run.result
        row = found.setdefault(
            run.method,
            {
                "method": run.method,
                "seeds": [],
                **{name: [] for name in (*SCORES, "seconds")},
                **{name: result[name] for name in FACTS},
                "lr": result["config"]["optim"]["lr"],
                "rules": result["config"]["rules"],
            },
        )
        row["seeds"].append(run.seed)
        for name in SCORES:
            row[name].append(result["scores"][name])
        row["seconds"].append(result.get("seconds"))
    return [*found.values()]


def unadapted(config: ConfigDict) -> tuple[np.ndarray, dict[str, list[float]]]:
    """Return a picture of what the base draws for the new digits, and its scores."""
    outline = diffusion.outline(config)
    variables = diffusion.base(config, outline)
    split = diffusion.data(config, choose=False).test
    assert split is not None
    call = plain(outline.model, outline.outputs)
    batches = eval_batches(split, config.train.eval_batch)
    drawn = evaluate(call, variables, None, batches)["outputs"]
    scores = outline.score(split["label"], drawn)
    picture = diffusion.picture(split["label"], drawn)
    return picture, {name: [scores[name]] for name in SCORES}


def reference(config: ConfigDict) -> dict[str, float]:
    """Return the scores of real scans: those not trained on, and the 40 trained on."""
    real = diffusion.real_rows(config)
    held, train = real(), diffusion.data(config, choose=False).train
    own = diffusion.score(real, held["label"], held["image"])
    trained = diffusion.score(real, train["label"], train["image"])
    return {
        "accuracy_of_real_scans": own["accuracy"],
        "scans": len(held["label"]),
        "frechet_of_the_training_scans": trained["frechet"],
    }


def markdown(found: Mapping[str, Any]) -> str:
    """Return the table, a line for each method, and what to know of it."""
    lines = [
        "| method | accuracy | Fréchet | trainable | share % | rate | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *map(_line, found["rows"]),
    ]
    real, hardware = found["reference"], found["hardware"]
    seeds = ", ".join(str(seed) for seed in found["rows"][-1]["seeds"])
    versions = found["versions"]
    text = (
        f"Accuracy, percent: {found['note']}. Fréchet: the distance of that "
        f"classifier's features of the pictures from those of {real['scans']} real "
        "scans that were not trained on. Of these scans it knows "
        f"{100 * real['accuracy_of_real_scans']:.1f}%; the scans trained on are "
        f"{real['frechet_of_the_training_scans']:.1f} away from them. `base` is the "
        "model before it is adapted, which never saw these digits. Seeds "
        f"{seeds}: mean ± sample standard deviation, after the last step. Rates were "
        "chosen on pictures drawn from other noise than the table's "
        "(`experiments.sweep`). Seconds: of a run, compilation and sampling included."
    )
    where = (
        f"{hardware['cpu']}, {hardware['cores']} cores; jax {versions['jax']}, flax "
        f"{versions['flax']}, Python {versions['python']}; {found['date'][:10]}"
    )
    return "\n".join([*lines, "", text, "", where, ""])


def _line(row: Mapping[str, Any]) -> str:
    accuracy = _spread([100 * x for x in row["accuracy"]])
    first = f"| {row['method']} | {accuracy} | {_spread(row['frechet'])}"
    if not row["seeds"]:
        return f"{first} | 0 | 0.00 | | |"
    known = [x for x in row["seconds"] if x is not None]
    return (
        f"{first} | {row['trainable']:,} | {100 * row['share']:.2f} | {row['lr']:g} | "
        f"{f'{mean(known):.0f}' if known else ''} |"
    )


def _spread(values: Sequence[float]) -> str:
    """Return mean and sample standard deviation.

    >>> _spread([1.0, 2.0]), _spread([3.0])
    ('1.5 ± 0.7', '3.0')
    """
    more = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{more}"


if __name__ == "__main__":
    sys.exit(main())
