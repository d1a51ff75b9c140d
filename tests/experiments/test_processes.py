"""Commands by several processes: as by one, and what ends one ends all."""

import json
import signal
import threading
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import finetune, table
from experiments.finetune import main
from experiments.preemption import RESUME_ME, Stopped
from experiments.table.__main__ import main as fill
from peftjax.storage.bucket import find as objects
from peftjax.training.metrics import read_metrics
from tests.helpers.job import TIMEOUT, begin, end, free_port, run

pytestmark = pytest.mark.slow

SMALL = {
    **{"model.depth": 1, "model.width": 16, "model.num_heads": 2, "model.mlp_dim": 32},
    **{"pretrain.epochs": 1, "train.epochs": 2, "train.eval_epochs": 1},
    **{"measure": False, "selection": "best_on_validation"},
}
# Restarts of one coordinator are a matter of seconds.
SOON = "from peftjax.parallel import distributed; distributed.MEETING = 20\n"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def given(cache):
    """Return the flags of a small run, `lora`, with changes."""

    def flags(**changes):
        settings = {**SMALL, "paths.cache": cache, **changes}
        config = ["--config", "configs/quickstart.py:method=lora"]
        return config + [f"--config.{key}={x}" for key, x in settings.items()]

    return flags


def losses(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def alike(one, other):
    """Assert that two folders hold the same files, scores and adapters."""
    names = [
        {x.relative_to(f) for x in f.rglob("*") if x.is_file() and x.suffix != ".lock"}
        for f in (one, other)
    ]
    assert names[0] == names[1]
    results = sorted(one.rglob("result.json"))
    for file in results:
        pair = [file, other / file.relative_to(one)]
        scores = [json.loads(path.read_text())["scores"] for path in pair]
        assert scores[0] == scores[1]
        adapters = [load_file(path.with_name("adapter.safetensors")) for path in pair]
        for name, value in adapters[0].items():
            np.testing.assert_allclose(adapters[1][name], value, atol=1e-6)
    return len(results)


def fetched(bucket, folder):
    """Copy a bucket's folder, without the claims."""
    for name in objects(bucket):
        if ".lock/" not in str(name):
            copy = folder / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((bucket / str(name)).read_bytes())


def test_two_processes_fill_the_table_of_one(given, tmp_path, bucket):
    """All train the same run at a time, in a bucket; process 0 writes and speaks."""
    command = ["table.__main__", *given(), "--methods", "linear,lora", "--seeds", "2"]
    codes, (first, second), errors = run([*command, "--workdir", str(bucket)], 2)
    assert codes == [0, 0], errors
    fetched(bucket, tmp_path / "two")
    codes, (alone,), errors = run([*command, "--workdir", str(tmp_path / "one")])
    assert codes == [0], errors
    assert alike(tmp_path / "one", tmp_path / "two") == 4
    said = [
        [x for x in text.splitlines() if x.startswith("digits,")]
        for text in (first, alone)
    ]
    assert len(said[0]) == len(said[1]) == 4
    assert "accuracy" not in second and "Written" not in second


def wait_for_checkpoint(folder, job):
    deadline = time.monotonic() + TIMEOUT
    while not list(folder.glob("checkpoints/*/SHA256SUMS")):
        if any(p.poll() is not None for p in job) or time.monotonic() > deadline:
            for process in job:
                process.kill()
            raise AssertionError(end(job))
        time.sleep(0.05)


def test_a_killed_process_ends_the_other_and_any_number_go_on(given, tmp_path):
    calm, place = tmp_path / "calm", tmp_path / "run"
    flags = given(**{"train.epochs": 6})
    (code,), _, errors = run(["finetune", *flags, "--workdir", str(calm)])
    assert code == 0, errors
    job = begin(["finetune", *flags, "--workdir", str(place)], 2)
    wait_for_checkpoint(place, job)
    job[1].kill()
    codes, _, (told, _) = end(job)
    assert codes[0] not in (0, RESUME_ME) and not (place / "result.json").exists()
    reasons = ("a process of this job is gone", "JAX distributed service detected")
    assert any(reason in told for reason in reasons), told
    command = ["finetune", *flags, "--resume", "--workdir", str(place)]
    codes, _, errors = run(command, devices=2)
    assert codes == [0], errors
    assert alike(calm, place) == 1
    steps, values = zip(*losses(calm))
    assert steps == tuple(step for step, _ in losses(place))
    np.testing.assert_allclose([x for _, x in losses(place)], values, atol=1e-5)


def test_a_signal_to_one_process_saves_and_ends_all(given, tmp_path):
    flags = [*given(**{"train.epochs": 500}), "--workdir", str(tmp_path)]
    job = begin(["finetune", *flags], 2)
    wait_for_checkpoint(tmp_path, job)
    job[1].send_signal(signal.SIGTERM)
    codes, _, errors = end(job)
    assert codes == [RESUME_ME] * 2, errors
    assert "process 0: stopped after step" in errors[0] and not errors[1].strip()
    step = max(int(x.parent.name) for x in tmp_path.glob("checkpoints/*/SHA256SUMS"))
    assert f"stopped after step {step};" in errors[0]


def test_an_error_in_one_process_ends_all_and_is_named(given, tmp_path):
    fault = (
        "from experiments.tasks import digits\n"
        "def broken(*_): raise ValueError('row 7 is torn')\n"
        "if number == 1: digits.data = broken\n"
    )
    command = ["finetune", *given(), "--workdir", str(tmp_path / "run")]
    codes, _, errors = run(command, 2, before=fault)
    assert codes[1] == 1 and codes[0] not in (0, RESUME_ME)
    told = [line for line in errors[1].splitlines() if line.startswith("process 1: ")]
    assert told == ["process 1: UnreadableData: quickstart, digits: row 7 is torn"]
    assert not list(tmp_path.rglob("result.json"))


def test_an_error_of_all_is_told_once(given, tmp_path):
    flags = given(**{"parallel.data": 3})
    codes, _, errors = run(["finetune", *flags, "--workdir", str(tmp_path / "x")], 2)
    assert codes == [1, 1]
    (line,) = [x for text in errors for x in text.splitlines() if "UnfitSettings" in x]
    assert line.startswith("process 0: UnfitSettings: quickstart: parallel.data=3")
    assert "there are 2 devices" in line


@pytest.mark.parametrize(
    ("count", "number", "told"),
    [(3, 0, "not all of 3 processes came"), (2, 1, "nobody answers")],
)
def test_who_is_waited_for_in_vain_is_one_line(given, tmp_path, count, number, told):
    where = ["--coordinator", f"localhost:{free_port()}", "--processes", str(count)]
    command = ["finetune", *given(), "--workdir", str(tmp_path / "x"), *where]
    (code,), _, (error,) = run([*command, "--process", str(number)], before=SOON)
    assert code == 1 and told in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--coordinator", "a:1", "--processes", "2"], "and --process together"),
        (["--coordinator=a", "--processes=2", "--process=1"], "expected HOST:PORT"),
        (["--coordinator=a:1", "--processes=2", "--process=2"], "expected one from 0"),
        (["--distributed"], "no cluster is recognised"),
    ],
)
def test_flags_that_name_no_job(given, tmp_path, flags, told):
    with pytest.raises(SystemExit, match=told) as caught:
        main([*given(), "--workdir", str(tmp_path / "x"), *flags])
    assert len(str(caught.value.code).splitlines()) == 1


@pytest.fixture
def two_devices(monkeypatch):
    """Return the seeds that each of two devices trained."""
    real, did = finetune.work, {}

    def work(config, folder, **settings):
        device = jax.config.jax_default_device
        did.setdefault(device, []).append(config.seed)
        return real(config, folder, **settings)

    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:2])
    monkeypatch.setattr(finetune, "work", work)
    return did


def test_each_device_does_runs_of_its_own(given, tmp_path, two_devices, capsys):
    command = [*given(), "--methods", "linear", "--workdir", str(tmp_path)]
    fill([*command, "--per-device", "--seeds", "3"])
    assert set(two_devices) == set(jax.devices()[:2])
    assert sorted(x for seeds in two_devices.values() for x in seeds) == [0, 1, 2]
    assert len(list(tmp_path.rglob("result.json"))) == 3
    assert capsys.readouterr().out.count("digits, linear") == 3
    with pytest.raises(SystemExit, match="its processes do not join"):
        fill([*command, "--per-device", "--processes", "2"])


def test_a_device_that_fails_stops_the_others(given, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:2])
    waiting = threading.Event()

    def done(workdir, config, cache, stop, tell):
        if config == "torn":
            waiting.wait(20)
            raise ValueError("torn")
        waiting.set()
        while not stop():
            time.sleep(0.01)
        raise Stopped("stopped")

    monkeypatch.setattr(table.devices, "done", done)
    with pytest.raises(ValueError, match="torn"):
        table.fill_by_device(tmp_path, ["torn", "whole"], lambda: False)
    with pytest.raises(Stopped):
        table.fill_by_device(tmp_path, ["whole"], lambda: True)
