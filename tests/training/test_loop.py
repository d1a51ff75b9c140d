"""Whole runs: metrics, kill and resume, stopping, and what goes wrong."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from peftjax import storage
from peftjax.data.pipeline import train_batches
from peftjax.parallel.mesh import make_mesh
from peftjax.training.checkpoint import Checkpoints
from peftjax.training.loop import NonFiniteLoss, Preempted, train
from peftjax.training.metrics import read_metrics
from tests.helpers.run_case import BATCH, STEPS, losses, run, score, values
from tests.helpers.training_case import arrays, loss, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: folder and final state."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(workdir, evaluate=score, eval_every=6)


def test_metrics_and_checkpoints_of_a_run(whole):
    workdir, state = whole
    records = losses(workdir)
    assert [r["step"] for r in records if "loss" in r] == [3, 4, 6, 8, 9, 12]
    assert [r["step"] for r in records if "eval" in r] == [6, 12]
    assert records[-1] == {"step": 12, "eval": score(state)}
    assert Checkpoints(workdir / "checkpoints").steps() == [8, 12]
    assert int(state.step) == STEPS


def test_resuming_is_bit_identical(whole, tmp_path):
    settings = {"evaluate": score, "eval_every": 6}
    run(tmp_path, steps=9, **settings)
    # What a killed run may leave: a line of a later step, and one cut short.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "loss": 1.0}\n{"step": 1')
    state = run(tmp_path, resume=True, **settings)
    assert values(state) == values(whole[1])
    # The first part evaluated at its own end.
    ended = [r for r in losses(tmp_path) if r["step"] == 9 and "eval" in r]
    assert len(ended) == 1
    assert [r for r in losses(tmp_path) if r not in ended] == losses(whole[0])


def test_sigkill_then_resume_is_bit_identical(whole, tmp_path):
    script = (
        "import sys; from tests.training.test_loop import killed as run; "
        "run(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    # that of step 8 may have been under way
    assert Checkpoints(tmp_path / "checkpoints").steps() in ([4], [4, 8])
    state = run(tmp_path, resume=True)
    assert values(state) == values(whole[1])


def test_a_run_in_a_bucket_ends_as_one_on_a_disk(whole, bucket):
    settings = {"evaluate": score, "eval_every": 6}
    run(bucket, steps=9, **settings)
    saved = bucket / "checkpoints"
    assert Checkpoints(bucket / "checkpoints").steps() == [8, 9]
    # What a process leaves that is killed before it closes one, or amid the next.
    (saved / "9" / "SHA256SUMS").unlink()
    storage.write_text(saved / "12" / "state" / "half", "")
    state = run(bucket, resume=True, **settings)
    assert values(state) == values(whole[1])
    assert Checkpoints(saved).steps() == [8, 12]
    assert storage.names(saved) == {"8", "12"}
    assert not (saved / "12" / "state" / "half").exists()
    assert losses(bucket) == losses(whole[0])


def killed(workdir):
    """Train, and be killed when batch 11 is asked for."""

    class Data:
        def __init__(self):
            self.iterator = train_batches(arrays(), BATCH, seed=5)
            self.get_state = self.iterator.get_state
            self.left = 10

        def __next__(self):
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            return next(self.iterator)

    run(workdir, data=Data())


def test_a_finished_run_resumes_to_itself(whole):
    before = (whole[0] / "metrics.jsonl").read_bytes()
    assert values(run(whole[0], resume=True)) == values(whole[1])
    assert (whole[0] / "metrics.jsonl").read_bytes() == before


def test_a_folder_with_a_run_is_not_overwritten(whole):
    with pytest.raises(
        FileExistsError, match=r"checkpoints/12: this folder holds a run"
    ):
        run(whole[0])


def poisoned(apply, batch, key):
    # The label marks one batch: the loss is not a number there and nowhere else.
    return loss(apply, batch, key) * jnp.where(batch["poison"] > 0, jnp.nan, 1.0)


def test_a_loss_that_is_not_a_number_stops(tmp_path):
    data = train_batches(arrays() | {"poison": np.zeros(80)}, BATCH, seed=5)

    class Poisoned:
        get_state = data.get_state
        count = 0

        def __next__(self):
            self.count += 1
            return next(data) | {"poison": np.full(BATCH, float(self.count == 8))}

    with pytest.raises(NonFiniteLoss) as error:
        run(tmp_path, data=Poisoned(), loss=poisoned)
    message = str(error.value)
    assert message.startswith("step 8: loss nan")
    assert f"last good checkpoint: {tmp_path / 'checkpoints' / '4'}" in message
    # The checkpoint of step 8 was due, and would have held the damage.
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4]


def test_data_that_ends_early(tmp_path):
    data = train_batches(arrays(), BATCH, seed=5, epochs=1)
    with pytest.raises(ValueError, match="the data ended before step 6"):
        run(tmp_path, data=data, save_every=0)


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"steps": -3}, {"steps": 2.5}, {"log_every": 0}, {"save_every": -1}],
)
def test_a_run_that_trains_nothing_is_refused(tmp_path, settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name}={value}: expected a whole number"):
        run(tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_a_run_longer_than_asked_is_not_resumed(whole):
    with pytest.raises(ValueError, match=r"checkpoints/12: .* 12 updates .* steps=9"):
        run(whole[0], steps=9, resume=True)


def test_a_stopped_run_is_saved_and_resumes_bit_for_bit(whole, tmp_path):
    settings = {"evaluate": score, "eval_every": 6}
    asked = []

    def stop():
        asked.append(1)
        return len(asked) == 7

    with pytest.raises(Preempted, match=r"after step 7; .*checkpoints/7$") as error:
        run(tmp_path, stop=stop, **settings)
    assert error.value.step == 7
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4, 7]
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 7
    state = run(tmp_path, resume=True, stop=lambda: False, **settings)
    assert values(state) == values(whole[1])
    own = [r for r in losses(tmp_path) if "eval" in r]
    assert own == [r for r in losses(whole[0]) if "eval" in r]


def test_no_update_waits_for_more_than_one_other(tmp_path):
    waited, most = set(), []

    class Metric:
        """A number that a device has not computed yet."""

        def __init__(self, step):
            self.step = step

        def block_until_ready(self):
            waited.add(self.step)

        def __array__(self, *_, **__):
            return np.float32(1)

    def step(state, variables, batch):
        most.append(int(state.step) - len(waited))
        names = ("loss", "grad_norm", "weight")
        ahead = state._replace(step=state.step + 1)
        return ahead, {name: Metric(int(ahead.step)) for name in names}

    _, state, variables = start(make_mesh(2, 4), loss=loss)
    data = train_batches(arrays(), BATCH, seed=5)
    train(step, state, variables, data, steps=5, workdir=tmp_path, log_every=5)
    assert max(most) == 1


def test_a_run_that_is_done_is_not_stopped(whole, tmp_path):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) >= STEPS

    assert values(run(tmp_path, stop=stop)) == values(whole[1])


def test_a_batch_without_weight_has_no_part_in_the_mean_loss(tmp_path):
    ones = {"mask": np.ones(80, np.float32)}
    data = train_batches(arrays() | ones, BATCH, seed=5)

    class Empty:
        get_state = data.get_state
        count = 0

        def __next__(self):
            self.count += 1
            return next(data) | {"mask": np.full(BATCH, float(self.count != 2))}

    run(tmp_path / "empty", steps=3, data=Empty(), log_every=3)
    run(tmp_path / "one", steps=1, log_every=1)
    record = losses(tmp_path / "empty")[0]
    first = losses(tmp_path / "one")[0]
    assert record["weight"] == BATCH
    assert 0.5 * first["loss"] < record["loss"] < 1.5 * first["loss"]
