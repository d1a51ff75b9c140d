"""Every benchmark, each in a process of its own; one JSON; the README's figures anew.

`python -m experiments.benchmarks.all --peer PYTHON`

`--only NAME` repeats one and keeps what the file says of the others. `--peer` names a
Python with torch, `transformers` and the torch library of adapters. The result is
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
BENCHMARKS = (
    *BESIDE_TORCH,
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
    parser.flag("--out", type=Path, help="JSON; by default results/benchmarks_*.json")
    options = parser.read(argv)
    default = readme.RESULTS / f"benchmarks_{jax.default_backend()}.json"
    file = options.out or default
    found = json.loads(file.read_text()) if file.exists() else {}
    failed = []
    for name in options.only or BENCHMARKS:
        print(f"== {name}", flush=True)
        beside = options.peer and name in BESIDE_TORCH
        peer = ["--peer", options.peer] if beside else []
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "result.json")
            module = f"experiments.benchmarks.{name}"
            command = [sys.executable, "-m", module, "--out", str(out), *peer]
            if subprocess.run(command).returncode:
                failed.append(name)
                continue
            found[name] = json.loads(out.read_text())
        storage.write_json(file, found)
    print(f"Written: {file}")
    if file == readme.BENCHMARKS:
        readme.write()
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    sys.exit(main())
