"""The table of a small DiT's new digits, and the picture beside it.

`python -m experiments.benchmarks.dit_table runs/dit_digits`

reads what `experiments.table --config configs/diffusion/dit_digits.py` left in the
folder and draws what the base makes of the digits that it knows and, from the noise of
the test split, of those that it never saw. `dit_digits.json`, `.md` and `.png`, the
base's pictures beside those of each method's first run, are written into `--out`.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs.diffusion import dit_digits
from experiments import cli
from experiments.measure import plain
from experiments.records import circumstances
from experiments.report.runs import read
from experiments.tasks import diffusion
from experiments.workdir import SAMPLES
from peftjax import storage
from peftjax.data.images import decode
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
    rows, adapted = methods(options.DIR), pictures(options.DIR)
    config = dit_digits.config()
    panels, scores = unadapted(config)
    rows = [{"method": "base", "seeds": [], **scores}, *rows]
    found = {
        "name": NAME,
        "rows": rows,
        "reference": reference(config),
        "note": diffusion.outline(config).note,
        "grid": [*config.grid],
        **circumstances(),
    }
    storage.write_json(options.out / f"{NAME}.json", found)
    storage.write_text(options.out / f"{NAME}.md", markdown(found))
    with storage.replacing(options.out / f"{NAME}.png") as file:
        file.write_bytes(figure(panels | adapted))
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


def pictures(workdir: Path) -> dict[str, np.ndarray]:
    """Return what each method's first run drew of the test split, by a title."""
    _, runs = read(workdir)
    first: dict[str, Any] = {}
    for run in runs:
        if not run.abandoned:
            first.setdefault(run.method, run)
    files = {
        f"{name}, seed {run.seed}": workdir / run.folder / SAMPLES / "test.png"
        for name, run in first.items()
    }
    return {
        title: np.asarray(decode(file.read_bytes(), str(file)))
        for title, file in files.items()
    }


def unadapted(
    config: ConfigDict,
) -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
    """Return pictures by their title, of the base and real, and the base's scores."""
    outline = diffusion.outline(config)
    variables = diffusion.base(config, outline)
    call = plain(outline.model, outline.outputs)

    def drawn(split: Mapping[str, np.ndarray]) -> np.ndarray:
        batches = eval_batches(split, config.train.eval_batch)
        return evaluate(call, variables, None, batches)["outputs"]

    settings = config.data
    data = diffusion.data(config, choose=False)
    train, test = data.train, data.test
    assert test is not None
    known = diffusion.to_draw(config, config.pretrain.classes, diffusion.SHOWN, seed=1)
    unseen = drawn(test)
    parts = {
        "the base, digits that it knows": (known["label"], drawn(known)),
        "the base, digits that it never saw": (test["label"], unseen),
        f"{diffusion.SHOWN} of the {settings.shots} scans of each": (
            train["label"],
            train["image"],
        ),
    }
    scores = outline.score(test["label"], unseen)
    return (
        {title: diffusion.picture(*part) for title, part in parts.items()},
        {name: [scores[name]] for name in SCORES},
    )


def figure(panels: Mapping[str, np.ndarray]) -> bytes:
    """Return pictures as one PNG, each below its title, two beside each other."""
    from matplotlib.figure import Figure

    sides = [picture.shape[0] / picture.shape[1] for picture in panels.values()]
    tall = [max(sides[i : i + 2]) for i in range(0, len(sides), 2)]
    size = 8, sum(4 * side + 0.3 for side in tall)
    drawn = Figure(figsize=size, layout="constrained")
    cells = drawn.subplots(len(tall), 2, squeeze=False, height_ratios=tall).ravel()
    for axes in cells:
        axes.set_axis_off()
    for axes, (title, picture) in zip(cells, panels.items()):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(title, fontsize=9)
    stream = io.BytesIO()
    drawn.savefig(stream, format="png", dpi=100)
    return stream.getvalue()


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
    grid = ", ".join(f"{lr:g}" for lr in found["grid"])
    seeds = ", ".join(str(seed) for seed in found["rows"][-1]["seeds"])
    versions = found["versions"]
    text = (
        f"Accuracy, percent: {found['note']}. Fréchet: the distance of that "
        f"classifier's features of the pictures from those of {real['scans']} real "
        "scans that were not trained on. Of these scans it knows "
        f"{100 * real['accuracy_of_real_scans']:.1f}%; the scans trained on are "
        f"{real['frechet_of_the_training_scans']:.1f} away from them. `base` is the "
        "model before it is adapted, which never saw these digits. Seeds "
        f"{seeds}: mean ± sample standard deviation, after the last step. Rates: of "
        f"{grid} that of the best mean accuracy over three other seeds, on pictures "
        "drawn from other noise than the table's (`experiments.sweep`, "
        f"`results/{NAME}_sweep.jsonl`). Seconds: of a run, compilation and sampling "
        "included."
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
