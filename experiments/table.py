"""Fine-tune with every method and seed, and write the table.

`python -m experiments.table --config configs/quickstart.py`

Finished runs are skipped, interrupted ones continued; `--force` repeats all. Each run
has a folder `WORKDIR/METHOD-SETTINGS/seedN`, where SETTINGS is a hash: a changed
configuration starts runs of its own.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments import cli, finetune, report
from experiments.records import configured, digest


def folder(workdir: Path, config: ConfigDict, seed: int) -> Path:
    """Return the folder of one run."""
    settings = digest(
        config.model,
        config.split_seed,
        config.pretrain,
        config.finetune,
        config.optim,
        config.methods[config.method].rules,
    )
    return workdir / f"{config.method}-{settings}" / f"seed{seed}"


def runs(config: ConfigDict, workdir: Path, force: bool) -> list[dict[str, Any]]:
    """Return the results of one method's seeds; those that are missing are run."""
    task, results = None, []
    for seed in config.seeds:
        place = folder(workdir, config, seed)
        if force:
            finetune.clear(place)
        file = place / finetune.RESULT
        if file.exists():
            print(f"{config.method}, seed {seed}: finished before", flush=True)
            results.append(json.loads(file.read_text()))
            continue
        task = task or finetune.Task(config)
        result = finetune.run(task, seed, place, resume=True)
        results.append(result)
        accuracy, seconds = (result["metrics"][k] for k in ("test_accuracy", "seconds"))
        print(
            f"{config.method}, seed {seed}: accuracy {accuracy:.4f} ({seconds:.1f} s)",
            flush=True,
        )
    return results


def main() -> None:
    start = time.perf_counter()
    config, workdir = CONFIG.value, Path(WORKDIR.value or f"runs/{CONFIG.value.name}")
    configs = [configured(config, name) for name in METHODS.value or config.rows]
    results = [runs(one, workdir, FORCE.value) for one in configs]
    report.write(config.name, results, workdir)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    CONFIG = cli.define_config()
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder; by default runs/NAME.")
    METHODS = flags.DEFINE_list("methods", None, "Methods; by default all.")
    FORCE = flags.DEFINE_bool("force", False, "Repeat finished runs.")
    cli.run(main)
