"""Folders of runs, written by hand, for the tests of the report."""

import json
import re

from experiments import report

FILES = ("table.csv", "table.json", "table.md", "table.png", "table.tex")
HARDWARE = {"cpu": "Some Processor", "cores": 2, "devices": ["cpu"]}
VERSIONS = {"python": "3.11.7", "jax": "0.10.2", "flax": "0.12.8"}
VIT = "ViT-B/16 (ImageNet-21k supervised)"
GLUE = {
    "file": "glue_hra.csv",
    "backbone": "DeBERTaV3-base",
    "methods": {"lora": "LoRA r=8", "hra": "HRA r=8 lambda=1e-5"},
    "tasks": {"cola": "CoLA", "mrpc": "MRPC"},
}


def result(task, method, seed, score, **more):
    size = 1000 + 100 * len(method)
    return {
        "status": "finished",
        **{"task": task, "method": method, "seed": seed, "metric": "accuracy"},
        **{"scores": {"accuracy": score, "f1": 0.123}, "note": "test split"},
        **{"trainable": size + len(task), "trainable_without_head": size},
        **{"share": size / 1e5, "seconds": 2.0 + seed, "adapter_bytes": 4 * size},
        **{"hardware": HARDWARE, "versions": VERSIONS},
        "date": f"2026-11-2{seed}T09:00:00+00:00",
        **more,
    }


def failed(task, method, seed, error="step 7: the loss is nan"):
    left = result(task, method, seed, 0.0, status="failed", error=error)
    return {key: left[key] for key in left if key not in ("scores", "trainable")}


def fill(workdir, results, planned=None, hashes=None, selection="last", **settings):
    """Write a plan and results; `planned` names runs, by default those with results."""
    found = {(one["task"], one["method"], one["seed"]): one for one in results}
    runs = []
    for key in planned or found:
        task, method, seed = key
        digest = (hashes or {}).get(key, "a1b2c3d4e5")
        place = f"{task}/{method}-{digest}/seed{seed}"
        names = {"task": task, "method": method, "seed": seed, "selection": selection}
        runs.append({"folder": place, **names})
        if key in found:
            (workdir / place).mkdir(parents=True)
            (workdir / place / "result.json").write_text(json.dumps(found[key]))
    workdir.mkdir(exist_ok=True)
    plan = {"name": "a_table", "table": settings, "runs": runs}
    (workdir / "plan.json").write_text(json.dumps(plan))
    return workdir


def written(workdir):
    report.write(workdir)
    return json.loads((workdir / "table.json").read_text())


def cells(workdir):
    """Return the Markdown table as one dictionary per row."""
    text = (workdir / "table.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    table = [re.split(r" ?(?<!\\)\| ?", line)[1:-1] for line in lines]
    return [dict(zip(table[0], row)) for row in table[2:]]


def below(workdir):
    """Return what the Markdown says below the table."""
    return (workdir / "table.md").read_text().partition("\n\n")[2]


SCORES = {
    ("cola", "lora"): [0.701, 0.722, 0.690],
    ("cola", "hra"): [0.713, 0.734, 0.755],
    ("mrpc", "lora"): [0.811, 0.802, 0.850],
    ("mrpc", "hra"): [0.823, 0.844, 0.871],
}
ALL = [
    result(task, method, seed, score)
    for (task, method), scores in SCORES.items()
    for seed, score in enumerate(scores)
]
