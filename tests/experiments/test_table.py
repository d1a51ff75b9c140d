"""Several processes fill one table; what goes wrong in a run stays in its cell."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from configs.quickstart import get_config
from experiments import finetune, table
from experiments.claims import LOCK, claim
from experiments.plan import folder as run_folder
from experiments.table.__main__ import main
from experiments.tasks.task import Data
from experiments.workdir import RunFolder
from peftjax.training.loop import NonFiniteLoss

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
DONE = re.compile(r"digits, \w+, seed \d: accuracy")
SMALL = {
    "model.depth": 1,
    "model.width": 16,
    "model.num_heads": 2,
    "model.mlp_dim": 32,
    "pretrain.epochs": 1,
    "train.epochs": 2,
    "train.eval_epochs": 1,
    "measure": False,
}


def worker(folder, *options, **changes):
    settings = {**SMALL, "paths.cache": folder.parent / "cache", **changes}
    command = [
        *(sys.executable, "-m", "experiments.table"),
        *("--config", "configs/quickstart.py", "--methods", "linear,lora"),
        *("--seeds", "2", "--workdir", str(folder), *options),
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]
    one_device = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=one_device, stdout=pipe, text=True)


def results(folder):
    """Return the scores by run."""
    found = {
        str(file.parent.relative_to(folder)): json.loads(file.read_text())["scores"]
        for file in folder.glob("*/*/*/result.json")
    }
    assert len(found) == 4
    return found


def test_two_workers_and_one_that_dies_fill_the_table_of_one(tmp_path):
    """No run is done twice, a killed one is continued, the report is the same."""
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    long = {"train.epochs": 12}
    first = worker(alone, **long)
    killed = worker(shared, **long)
    deadline = time.monotonic() + 200
    while not list(shared.glob("*/*/*/checkpoints/*/SHA256SUMS")):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    done_before = list(shared.glob("*/*/*/result.json"))
    killed.wait()
    workers = [worker(shared, **long) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in workers]
    assert [process.returncode for process in workers] == [0, 0]
    one_by_one, _ = first.communicate(timeout=300)
    assert first.returncode == 0

    lines = "\n".join(said).splitlines()
    trained = [x.partition(":")[0] for x in lines if DONE.match(x)]
    assert len(trained) == len(set(trained)) == 4 - len(done_before)
    assert results(shared) == results(alone)
    for file in shared.glob("*/*/*/adapter.safetensors"):  # to the same bits
        assert file.read_bytes() == (alone / file.relative_to(shared)).read_bytes()
    assert (shared / "table.csv").exists()
    scores = [
        [{**row, "seconds": None} for row in json.loads(text)["rows"]]
        for text in ((f / "table.json").read_text() for f in (shared, alone))
    ]
    assert scores[0] == scores[1]
    assert sum(bool(DONE.match(line)) for line in one_by_one.splitlines()) == 4


def test_a_claim_is_exclusive_and_ends_with_its_process(tmp_path):
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from experiments.claims import claim\n"
        "with claim(Path(sys.argv[1])) as ours:\n"
        "    print(ours is not None, flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "True\n"
    with claim(tmp_path) as ours:
        assert ours is None
    other.kill()
    other.wait()
    with claim(tmp_path) as ours:
        assert ours is not None
    assert [file.name for file in tmp_path.iterdir()] in ([], [LOCK])


@pytest.fixture
def configs(tmp_path):
    """Two runs whose training is replaced."""
    found = []
    for arg in ("method=lora", "method=linear"):
        config = get_config(arg)
        config.update_from_flattened_dict({**SMALL, "paths.cache": str(tmp_path)})
        found.append(config)
    return found


def test_a_run_that_diverges_is_marked_and_the_others_go_on(
    configs, tmp_path, monkeypatch, capsys
):
    class Run:
        def __init__(self, config, cache, stop):
            self.config = config
            self.outline = type("", (), {"metric": "accuracy", "note": ""})
            split = {"label": np.zeros(3, int)}
            self.data = Data(split, split, split)

    def trained(run, folder: RunFolder, resume, stop, tell):
        folder.own("checkpoints")
        (folder.path / "checkpoints").mkdir()
        if run.config.method == "lora":
            raise NonFiniteLoss("step 7: loss nan")
        sizes = dict.fromkeys(("trainable", "trainable_without_head", "share"), 1)
        return {"scores": {"accuracy": 0.5}, "adapter_bytes": 1, **sizes}

    monkeypatch.setattr(finetune, "Run", Run)
    monkeypatch.setattr(finetune, "_trained", trained)
    table.fill(tmp_path, configs)
    failed, finished = (
        json.loads((run_folder(tmp_path, one) / "result.json").read_text())
        for one in configs
    )
    assert failed["status"] == "failed" and failed["error"] == "step 7: loss nan"
    assert "scores" not in failed and finished["status"] == "finished"
    assert "FAILED: step 7" in capsys.readouterr().out
    table.fill(tmp_path, configs)  # what failed is not tried again by itself
    assert "FAILED" not in capsys.readouterr().out


def test_a_full_disk_leaves_no_half_weights(tmp_path):
    script = (
        "import resource, sys, numpy as np\n"
        "from peftjax.hub.tensors import save_tree\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    save_tree(sys.argv[1], {'x': np.zeros(5000)})\n"
        "except OSError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "x.safetensors")]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "x.safetensors" in told.stdout and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--methods", "lora,hrra"), "did you mean hra"),
        (("--tasks", "digts"), "did you mean digits"),
        (("--seeds", "0"), "expected a whole number above 0"),
        (("--workdir", ""), "expected a folder, found an empty text"),
    ],
)
def test_unknown_names_end_in_one_line(tmp_path, options, named):
    workdir = ["--workdir", str(tmp_path / "x")]
    with pytest.raises(SystemExit, match=named) as caught:
        main(["--config", "configs/quickstart.py", *workdir, *options])
    assert len(str(caught.value.code).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_settings_that_were_corrected_are_abandoned(configs, tmp_path):
    """Another rate in the file, not on the command line: the old runs are no rows."""
    from experiments.plan import plan

    first, other = configs
    changed = first.copy_and_resolve_references()
    changed.optim.lr = 0.5

    def abandoned():
        runs = json.loads((tmp_path / "plan.json").read_text())["runs"]
        return {run["folder"]: bool(run.get("abandoned")) for run in runs}

    def place(config):
        return str(run_folder(tmp_path, config).relative_to(tmp_path))

    plan(first, tmp_path, [first, other])
    plan(first, tmp_path, [changed], "optim.lr=0.5")  # asked for: a row of its own
    assert not any(abandoned().values())
    changed.optim.lr = 0.25
    plan(first, tmp_path, [changed])
    assert [name for name, gone in abandoned().items() if gone] == [place(first)]
    plan(first, tmp_path, [first])  # and back
    assert [name for name, gone in abandoned().items() if gone] == [place(changed)]
