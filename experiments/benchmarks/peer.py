"""Another Python, with torch, that takes one step at a time."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def peer(python: str, script: str, *given: Any) -> Iterator[Callable[[str], None]]:
    """Start a script of this folder under another Python; yield `step(name)`.

    Args:
        python: it has torch and the torch library of adapters.
        script: reads a name from each line of its input, and answers with the same
            line once that step is done.
        *given: its arguments.
    """
    file = Path(__file__).with_name(script)
    process = subprocess.Popen(
        [python, str(file), *map(str, given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Threads that spin while they wait would slow the other process down.
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": ""},
    )
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def step(name: str) -> None:
        stdin.write(f"{name}\n")
        stdin.flush()
        if stdout.readline().strip() != name:
            raise RuntimeError(f"{python} {file} stopped; its error is above")

    try:
        yield step
    finally:
        stdin.close()
        process.wait()
