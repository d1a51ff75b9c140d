"""A table by one process for each core: as by one, and what ends one ends all."""

import os
import re
import signal
import time

import pytest

from experiments.preemption import RESUME_ME
from tests.helpers.job import begin, end

pytestmark = pytest.mark.slow

SMALL = {
    **{"model.depth": 1, "model.width": 16, "model.num_heads": 2, "model.mlp_dim": 32},
    **{"pretrain.epochs": 1, "train.epochs": 2, "train.eval_epochs": 1},
    **{"measure": False},
}
TWO = "from experiments.table import cores\nown = cores.cores()[:1] * 2\n"
TWO += "cores.cores = lambda: own"
# As long a run as is needed to be met in the middle.
LONG = "--config.train.epochs=2000"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Return the command of a small table of two methods."""
    settings = {**SMALL, "paths.cache": tmp_path_factory.mktemp("cache")}
    command = ["--config", "configs/quickstart.py", "--methods", "linear,ia3"]
    command += [f"--config.{key}={x}" for key, x in settings.items()]
    return [*command, "--seeds", "1", "--workdir"]


def files(folder):
    """Return all weights by path, and which files there are."""
    every = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): path.suffix == ".safetensors"
        and path.read_bytes()
        for path in every
    }


def children(process):
    """Return the ids of the processes that do runs, once both do."""
    while True:
        assert process.poll() is None, process.communicate()
        place = f"/proc/{process.pid}/task/{process.pid}/children"
        with open(place) as listed:
            found = [int(x) for x in listed.read().split()]
        lines = [open(f"/proc/{x}/cmdline").read() for x in found]
        workers = [x for x, line in zip(found, lines) if "spawn_main" in line]
        if len(workers) == 2:
            return workers
        time.sleep(0.05)


def gone(number):
    """Return whether a process has ended, or only waits to be asked for its status."""
    try:
        with open(f"/proc/{number}/stat") as file:
            return re.sub(r"^.*\) ", "", file.read()).startswith("Z")
    except FileNotFoundError:
        return True


def test_a_core_each_fills_the_table_of_one(given, tmp_path):
    command, alone = ["table.__main__", *given], "--config.table.per_device=false"
    both = begin([*command, str(tmp_path / "cores")], before=TWO)
    both += begin([*command, str(tmp_path / "one"), alone])
    codes, said, errors = end(both)
    assert codes == [0, 0], errors
    assert [out.count("seed 0: accuracy") for out in said] == [2, 2]
    found, alone = files(tmp_path / "cores"), files(tmp_path / "one")
    assert found == alone and sum(map(bool, found.values())) == 2


def met(workdir):
    """Wait until both runs have saved a checkpoint."""
    while len({x.parents[1] for x in workdir.glob("*/*/*/checkpoints/*")}) < 2:
        time.sleep(0.05)


def test_a_signal_stops_all_and_a_death_is_one_line(given, tmp_path):
    command = ["table.__main__", *given, str(tmp_path), LONG]
    (parent,) = begin(command, before=TWO)
    workers = children(parent)
    met(tmp_path)
    parent.send_signal(signal.SIGTERM)
    codes, (said,), errors = end([parent])
    assert codes == [RESUME_ME], errors
    assert "SIGTERM: stopping" in said and "stopped after step" in errors[0]
    assert all(map(gone, workers))

    (parent,) = begin(command, before=TWO)
    workers = children(parent)
    met(tmp_path)
    os.kill(workers[0], signal.SIGKILL)
    codes, _, (told,) = end([parent])
    assert codes == [1] and told.count("\n") == 1, told
    assert "a process that did runs was killed" in told
    assert all(map(gone, workers))

    (parent,) = begin(command, before=TWO)
    workers = children(parent)
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 60
    while not all(map(gone, workers)):
        assert time.monotonic() < until
        time.sleep(0.05)
