"""Several processes that are one job: how they join, what they say, how they end.

With `--coordinator HOST:PORT --processes N --process I` each process says which one it
is; on Cloud TPU, under Slurm's `srun` and Open MPI's `mpirun` JAX finds that out by
itself. Process 0 shows progress; an error is told by the process that it happened in,
and ends all of them: those that wait for it are ended by JAX, at the latest
`distributed.HEARTBEAT` seconds later.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
import traceback
from typing import NoReturn

import jax

from peftjax.parallel import distributed

# Seconds that a process that failed waits for the others to end by the same error.
GRACE = 10
GONE = 134  # exit status where another process is gone, as JAX ends one
# How many processes Slurm and Open MPI started: one needs nobody to join.
COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")


class CannotJoin(OSError):
    """The processes of a job do not come together."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a job of several processes."""
    group = parser.add_argument_group(
        "several processes", "found by itself on Cloud TPU, under srun and mpirun"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    group.add_argument("--processes", metavar="N", type=int, help="how many there are")
    group.add_argument("--process", metavar="I", type=int, help="this one, from 0")
    group.add_argument(
        "--distributed", action="store_true", help="fail where there is no such cluster"
    )


def join(options: argparse.Namespace) -> None:
    """Join this process to its job, if it is of one.

    The processes of a table `--per-device` are each for themselves.

    Raises:
        CannotJoin: the flags contradict each other, or the others do not come.
    """
    # It would catch SIGTERM and not say so; see `experiments.preemption`.
    jax.config.update("jax_enable_preemption_service", False)
    given = options.coordinator, options.processes, options.process
    if vars(options).get("per_device"):
        if given != (None, None, None) or options.distributed:
            raise CannotJoin("--per-device: its processes do not join; leave that out")
        return
    if jax.distributed.is_initialized() or options.processes == 1:
        return
    if given == (None, None, None):
        _found(options.distributed)
    else:
        _check(*given)
        watch = threading.Timer(distributed.MEETING - 5, _too_late, given)
        watch.daemon = True
        watch.start()
        distributed.initialize(*given)
        watch.cancel()
    if not jax.distributed.is_initialized():
        return
    if options.processes not in (None, jax.process_count()):
        raise CannotJoin(
            f"--processes {options.processes}: process 0 was told that there are "
            f"{jax.process_count()}; give all the same number"
        )
    if not distributed.is_main():
        sys.stdout = open(os.devnull, "w")


def _found(insist: bool) -> None:
    """Join where JAX recognises a cluster."""
    if not insist and any(os.environ.get(name) == "1" for name in COUNTS):
        return
    try:
        distributed.initialize()
    except (ValueError, RuntimeError) as error:
        # The latter where JAX was used before, in a notebook for one.
        if isinstance(error, RuntimeError) and "be called before" not in str(error):
            raise
        if insist:
            raise CannotJoin(
                f"--distributed: no cluster is recognised ({error}); give "
                "--coordinator HOST:PORT --processes N --process I"
            ) from error


def _check(coordinator: str | None, count: int | None, number: int | None) -> None:
    if None in (coordinator, count, number):
        raise CannotJoin("give --coordinator, --processes and --process together")
    host, _, port = str(coordinator).rpartition(":")
    if not host or not port.isdecimal():
        raise CannotJoin(f"--coordinator {coordinator}: expected HOST:PORT")
    if not 0 <= int(number or 0) < int(count or 0):
        raise CannotJoin(
            f"--process {number} of --processes {count}: expected one from 0 to one "
            "below their number"
        )


def _too_late(coordinator: str, count: int, number: int) -> None:
    """End this process with one line, before JAX does with many."""
    host, _, port = coordinator.rpartition(":")
    reason = (
        f"not all of {count} processes came; start one with each --process from 0 to "
        f"{count - 1}, of the same --coordinator and --processes"
    )
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError as error:
        reason = f"nobody answers ({error.strerror or error}); is process 0 there?"
    end(1, f"CannotJoin: {coordinator}: {reason}")


def fail(code: int, told: str, *, same: bool) -> NoReturn:
    """End this process of a job after an error.

    Args:
        code: exit status.
        told: the error, one line.
        same: it is an error of all processes alike, told by the first.
    """
    if distributed.is_main() or not same:
        print(f"process {jax.process_index()}: {told}", file=sys.stderr, flush=True)
    # If the others end too, all leave in order. One that does not come is in the midst
    # of something, and finds out by this process being gone.
    leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    leaving.start()
    leaving.join(GRACE)
    end(code)


def lost(error: BaseException) -> bool:
    """Return whether an error says that another process is gone."""
    told = str(error)
    return "Gloo" in told and ("peer" in told or "timed out" in told.lower())


def end(code: int, told: str = "") -> NoReturn:
    """End this process at once: at its exit JAX would wait for the others."""
    if told:
        print(told, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def show(error: BaseException) -> None:
    """Print where an error that nobody expected came from."""
    traceback.print_exception(error)
