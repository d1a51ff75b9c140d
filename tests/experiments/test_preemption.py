"""SIGTERM and Ctrl-C: a checkpoint, the exit status 75, and the same bits later."""

import os
import signal
import threading
from pathlib import Path

import pytest

from experiments import table
from experiments.claims import alone
from experiments.finetune import main
from experiments.preemption import RESUME_ME, Stopped, stop_on_signals
from experiments.pretrain import main as pretrain
from experiments.table.__main__ import main as fill
from experiments.tasks import digits, from_scratch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    **{"model.depth": 1, "model.width": 16, "model.num_heads": 2, "model.mlp_dim": 32},
    **{"pretrain.epochs": 1, "train.epochs": 3, "train.eval_epochs": 1},
    **{"measure": False, "selection": "best_on_validation"},
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    settings = {**SMALL, "paths.cache": cache}
    config = f"--config={ROOT / 'configs/quickstart.py'}"
    return [config, *(f"--config.{key}={value}" for key, value in settings.items())]


@pytest.fixture
def asked(monkeypatch):
    """Send a signal at the first evaluation; return what to choose it by."""
    score, chosen = digits.score, []

    def scored(*args):
        if chosen:
            os.kill(os.getpid(), chosen.pop())
        return score(*args)

    monkeypatch.setattr(digits, "score", scored)
    return chosen


def bits(folder):
    return {x.name: x.read_bytes() for x in folder.glob("*.safetensors")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_is_resumed(given, asked, tmp_path, number):
    main([*given, "--workdir", str(tmp_path / "calm")])
    before = signal.getsignal(number)
    asked.append(number)
    with pytest.raises(SystemExit) as caught:
        main([*given, "--workdir", str(tmp_path / "run")])
    assert caught.value.code == RESUME_ME == 75
    assert signal.getsignal(number) is before
    steps = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert max(steps) == 20  # the step after the evaluation
    assert not (tmp_path / "run" / "result.json").exists()
    main([*given, "--workdir", str(tmp_path / "run"), "--resume"])
    assert bits(tmp_path / "run") == bits(tmp_path / "calm")
    names = [
        {x.name for x in (tmp_path / place).iterdir()} for place in ("run", "calm")
    ]
    assert names[0] == names[1]


def test_a_table_that_is_told_to_stop_is_resumed(given, asked, tmp_path, capsys):
    asked.append(signal.SIGTERM)
    # A run after the other: eight devices would end both before they are asked.
    command = [*given, "--config.table.per_device=False", "--methods", "linear"]
    command += ["--seeds", "2", "--workdir", str(tmp_path / "table")]
    with pytest.raises(SystemExit) as caught:
        fill(command)
    assert caught.value.code == RESUME_ME
    assert not list(tmp_path.rglob("result.json"))
    fill(command)
    assert len(list(tmp_path.rglob("result.json"))) == 2
    with pytest.raises(Stopped, match="the same command resumes"):
        table.fill(tmp_path / "table", [None], stop=lambda: True)


def test_pretraining_is_told_to_stop_and_goes_on(given, tmp_path, monkeypatch):
    """Between two steps; to the same bits, and nothing is left of it."""
    given = [*given, "--config.parallel.data=1"]
    command = [*given, f"--config.paths.cache={tmp_path / 'calm'}"]
    pretrain(command)
    (base,) = (tmp_path / "calm").glob("*.safetensors")

    real = from_scratch.train_batches

    class Batches:
        def __init__(self, *args, **more):
            self.data, self.taken = real(*args, **more), 0
            self.get_state, self.set_state = self.data.get_state, self.data.set_state

        def __next__(self):
            self.taken += 1
            if self.taken == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return next(self.data)

    command[-1] = f"--config.paths.cache={tmp_path / 'stopped'}"
    with monkeypatch.context() as patch:
        patch.setattr(from_scratch, "train_batches", Batches)
        with pytest.raises(SystemExit) as caught:
            pretrain(command)
    assert caught.value.code == RESUME_ME
    (place,) = (tmp_path / "stopped").glob("*.training")
    assert [path.name for path in (place / "checkpoints").iterdir()] == ["4"]
    pretrain(command)
    left = {path.name for path in (tmp_path / "stopped").iterdir()}
    assert left == {base.name, f"{base.name}.lock"}
    assert (tmp_path / "stopped" / base.name).read_bytes() == base.read_bytes()


def test_who_waits_for_a_base_can_be_stopped(tmp_path):
    with alone(tmp_path / "base"), pytest.raises(Stopped, match="another process"):
        with alone(tmp_path / "base", stop=lambda: True):
            pass


def test_a_second_signal_is_not_held_back(request):
    # a shell's background jobs start with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with stop_on_signals() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_outside_the_main_thread_no_handler_is_set():
    found = []

    def work():
        with stop_on_signals() as stop:
            found.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
