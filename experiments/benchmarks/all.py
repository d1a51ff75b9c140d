"""Every benchmark, each in a process of its own; one JSON; the pages' figures anew.

`python -m experiments.benchmarks.all --peer PYTHON --data-dir DIR`

`--only NAME` repeats one and keeps what the file says of the others. `--peer` names a
Python with torch, `transformers` and the torch library of adapters; `--data-dir` holds
`gsm8k/train.jsonl`. The result is
`results/benchmarks_PLATFORM.json`: of each benchmark its figures, the machine and the
versions. A benchmark that fails leaves its old figures, and the command ends with 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax

from experiments import cli
from experiments.benchmarks import readme
from peftjax import storage

BESIDE_TORCH = ("step_time", "llm_time")
WITH_DATA = ("llm_quantised", "llm_packed")
BENCHMARKS = (
    *BESIDE_TORCH,
    *WITH_DATA,
    "merge_time",
    "bank_time",
    "data_throughput",
    "load_memory",
)


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run them, as the command line says."""
    parser = cli.Parser(__doc__, config=False)
    every = {"action": "append", "help": "one or more; by default all"}
    parser.flag("--only", choices=BENCHMARKS, **every)
    parser.flag("--peer", help="a Python with torch, transformers and peft")
    parser.flag("--data-dir", default="data", help="data of language models")
    parser.flag("--out", type=Path, help="JSON; by default results/benchmarks_*.json")
    options = parser.read(argv)
    default = readme.RESULTS / f"benchmarks_{jax.default_backend()}.json"
    file = options.out or default
    found = json.loads(file.read_text()) if file.exists() else {}
    failed = []
    for name in options.only or BENCHMARKS:
        print(f"== {name}", flush=True)
        beside = options.peer and name in BESIDE_TORCH
        given = ["--peer", options.peer] if beside else []
        given += ["--data-dir", options.data_dir] if name in WITH_DATA else []
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "result.json")
            module = f"experiments.benchmarks.{name}"
            command = [sys.executable, "-m", module, "--out", str(out), *given]
            if subprocess.run(command).returncode:
                failed.append(name)
                continue
            found[name] = json.loads(out.read_text())
        storage.write_json(file, found)
    print(f"Written: {file}")
    if file.parent == readme.RESULTS:
        readme.write()
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    sys.exit(main())
