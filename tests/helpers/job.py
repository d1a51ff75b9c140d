"""Commands run by several processes of one job on loopback."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 400  # seconds, on a machine with much else to do


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def begin(command, count=1, devices=1, before="", **environment):
    """Start the processes of a job.

    Args:
        command: a module of experiments and its arguments.
        count: of processes; 1 is no job.
        devices: of each process.
        before: code that each process runs first; `number` is its own.
        **environment: beside the present one.
    """
    module, *arguments = command
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        **environment,
    }
    code = "import sys; number = int(sys.argv.pop(1))\n{}\n"
    code += "from {} import main; sys.exit(main())"
    code, port = code.format(before, f"experiments.{module}"), free_port()

    def joining(number):
        if count == 1:
            return []
        where = ["--coordinator", f"localhost:{port}"]
        return [*where, "--processes", str(count), "--process", str(number)]

    return [
        subprocess.Popen(
            [sys.executable, "-c", code, str(number), *arguments, *joining(number)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def end(processes):
    """Return the exit codes, and what each wrote to stdout and to stderr."""
    said = [process.communicate(timeout=TIMEOUT) for process in processes]
    codes = [process.returncode for process in processes]
    return codes, [out for out, _ in said], [err for _, err in said]


def run(command, count=1, **settings):
    """Return exit codes, stdout and stderr of all processes of a job."""
    return end(begin(command, count, **settings))
