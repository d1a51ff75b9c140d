"""The main job, on a model small enough for a test."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs.quickstart import METHODS, get_config
from experiments import finetune, pretrain, report, table
from experiments.benchmarks.measure import forward
from experiments.records import configured
from peftjax.hub import files
from peftjax.hub.tensors import load_tree
from peftjax.parallel.mesh import make_mesh
from peftjax.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "model.depth": 1,
    "model.width": 16,
    "model.num_heads": 2,
    "model.mlp_dim": 32,
    "pretrain.epochs": 1,
    "finetune.epochs": 1,
}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A finished table: its configurations, folder and results."""
    folder = tmp_path_factory.mktemp("job")
    config = get_config()
    config.update_from_flattened_dict(SMALL)
    config.cache = str(folder / "cache")
    configs = [configured(config, name) for name in ("lora", "linear")]
    configs[0].seeds, configs[1].seeds = (0, 1), (0,)
    traced = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            finetune, "loss", lambda *args: traced.append(1) or pretrain.loss(*args)
        )
        for module in (pretrain, finetune):  # eight fake devices are slow
            patch.setattr(module, "make_mesh", lambda: make_mesh(data=1))
        results = [table.runs(one, folder, force=False) for one in configs]
        assert len(traced) == len(configs)  # the seeds of a method share one program
        report.write("small", results, folder)
        yield configs, folder, results


def test_every_run_leaves_its_files(job):
    configs, folder, results = job
    for config, runs in zip(configs, results):
        assert tuple(run["seed"] for run in runs) == config.seeds
        for run in runs:
            place = table.folder(folder, config, run["seed"])
            assert json.loads((place / "result.json").read_text()) == run
            assert run["config"]["method"] == run["method"] == config.method
            assert {"jax", "flax", "python"} <= set(run["versions"])
            (adapter,) = place.glob("adapter.safetensors")
            assert adapter.stat().st_size == run["metrics"]["adapter_bytes"]
            evals = [
                line for line in read_metrics(place / "metrics.jsonl") if "eval" in line
            ]
            accuracy = run["metrics"]["validation_accuracy"]
            assert evals[-1]["eval"]["accuracy"] == accuracy


def test_the_adapter_file_and_the_merged_weights_give_the_same_logits(job):
    configs, folder, results = job
    task = finetune.Task(configs[0])
    place = table.folder(folder, configs[0], 0)
    adapters = files.load(place / "adapter", task.peft, task.base)
    merged = load_tree(place / "merged.safetensors", task.base)
    images = task.data.test.images
    adapted = jax.jit(task.peft.apply)(task.base, adapters, images)
    difference = np.abs(adapted - forward(task.model)(merged, images)).max()
    metrics = results[0][0]["metrics"]
    assert metrics["trainable"] == sum(leaf.size for leaf in jax.tree.leaves(adapters))
    assert 0 < metrics["merge_difference"] < 1e-4 and difference < 1e-4
    found = (adapted.argmax(-1) == task.data.test.labels).mean()
    assert metrics["test_accuracy"] == pytest.approx(float(found))


def test_what_cannot_merge_says_so_and_leaves_no_merged_weights(job, tmp_path, capsys):
    task = finetune.Task(configured(job[0][0], "hydralora"))
    adapters = task.peft.init(jax.random.key(0))
    assert finetune._merge(task, adapters, tmp_path / "merged.safetensors") is None
    assert "blocks_0/" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_the_table_is_made_of_the_results(job):
    _, folder, results = job
    rows = json.loads((folder / "table.json").read_text())["rows"]
    scores = [run["metrics"]["test_accuracy"] for run in results[0]]
    assert rows[0]["accuracy"] == pytest.approx(np.mean(scores))
    assert rows[0]["accuracy_std"] == pytest.approx(np.std(scores, ddof=1))
    assert rows[1]["accuracy_std"] is None
    text = (folder / "table.md").read_text()
    assert f"| lora | {100 * rows[0]['accuracy']:.1f} ± " in text
    assert f"| linear | {100 * rows[1]['accuracy']:.1f} |" in text
    assert (folder / "table.png").read_bytes().startswith(b"\x89PNG")


def test_finished_runs_and_the_base_are_not_repeated(job, monkeypatch):
    configs, folder, results = job

    def never(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(finetune, "Task", never)
    assert table.runs(configs[0], folder, force=False) == results[0]
    with pytest.raises(AssertionError, match="trained again"):
        table.runs(configured(configs[0], "bitfit"), folder, force=False)
    monkeypatch.setattr(pretrain, "_train", never)
    pretrain.pretrained(configs[0])
    configs[0].pretrain.epochs += 1
    with pytest.raises(AssertionError, match="trained again"):
        pretrain.pretrained(configs[0])
    configs[0].pretrain.epochs -= 1


def test_force_deletes_the_run_and_nothing_else(tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    for name in ("result.json", "merged.safetensors", "mine.txt"):
        (tmp_path / name).write_text("")
    finetune.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_changed_configuration_is_another_run(job):
    configs, folder, _ = job
    changed = configured(configs[0], "lora")
    changed.optim.lr *= 2
    assert table.folder(folder, changed, 0) != table.folder(folder, configs[0], 0)
    changed = configured(configs[0], "lora")
    changed.seeds = (0, 1, 2, 3)
    assert table.folder(folder, changed, 0) == table.folder(folder, configs[0], 0)


@pytest.mark.parametrize(
    ("arg", "named"),
    [
        ("method=lorra", "'lora'|lora"),
        ("methd=lora", "method"),
        ("method=lora,sed=1", "seed"),
    ],
)
def test_the_configs_argument_names_the_nearest(arg, named):
    with pytest.raises(ValueError, match=f"did you mean ({named})"):
        get_config(arg)


def test_every_method_of_the_config_is_complete():
    config = get_config("method=hra,seed=2")
    assert (config.method, config.seed) == ("hra", 2)
    assert (
        config.optim.lr == config.methods.hra.lr
        and config.methods.hra.lr in config.grid
    )
    assert config.rows == tuple(METHODS)


def test_a_folder_that_holds_a_run_is_not_overwritten(job):
    configs, folder, _ = job
    place = table.folder(folder, configs[0], 0)
    with pytest.raises(FileExistsError, match="resume it"):
        finetune.run(finetune.Task(configs[0]), 0, place)


def start(workdir, cache, *options):
    # Enough steps after the first checkpoint to be killed in.
    settings = {**SMALL, "finetune.epochs": 30, "cache": cache}
    command = [
        *(sys.executable, "-m", "experiments.finetune"),
        *("--config", "configs/quickstart.py:method=lora"),
        *("--workdir", str(workdir)),
        *(f"--config.{key}={value}" for key, value in settings.items()),
        *options,
    ]
    one_device = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.Popen(command, cwd=ROOT, env=one_device)


def test_a_killed_run_resumes_to_the_same_bits(job, tmp_path):
    cache, folder = job[1] / "cache", tmp_path / "killed"
    whole, killed = start(tmp_path / "whole", cache), start(folder, cache)
    deadline = time.monotonic() + 200
    while not list(folder.glob("checkpoints/*/SHA256SUMS")):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (folder / "adapter.safetensors").exists()
    assert start(folder, cache, "--resume").wait() == 0 == whole.wait()
    one = load_file(tmp_path / "whole" / "adapter.safetensors")
    other = load_file(folder / "adapter.safetensors")
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key])
