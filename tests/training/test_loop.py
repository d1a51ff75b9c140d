"""Whole runs: metrics, checkpoints, kill and resume, and what goes wrong."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from peftjax.data.pipeline import train_batches
from peftjax.parallel.mesh import make_mesh
from peftjax.training.checkpoint import CheckpointError, Checkpoints, DamagedCheckpoint
from peftjax.training.errors import RunFileError
from peftjax.training.loop import NonFiniteLoss, Preempted, train
from peftjax.training.metrics import MetricsFile, read_metrics
from peftjax.training.optimizer import make_optimizer
from tests.helpers.training_case import arrays, case, loss, start

STEPS, SAVE, BATCH = 12, 4, 16


def run(workdir, steps=STEPS, data=None, loss=loss, **settings):
    """Train with dropout on all devices."""
    step, state, variables = start(make_mesh(2, 4), rate=0.2, loss=loss)
    data = data or train_batches(arrays(), BATCH, seed=5)
    settings = {"save_every": SAVE, "log_every": 3} | settings
    return train(step, state, variables, data, steps=steps, workdir=workdir, **settings)


def values(state):
    return [
        np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state._replace(key=()))
    ]


def losses(workdir):
    return [
        {k: v for k, v in record.items() if k != "examples_per_s"}
        for record in read_metrics(Path(workdir) / "metrics.jsonl")
    ]


def score(state):
    return {
        "norm": float(sum(jnp.abs(x).sum() for x in jax.tree.leaves(state.trainable)))
    }


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
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4, 8]
    state = run(tmp_path, resume=True)
    assert values(state) == values(whole[1])


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


def copied(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    return tmp_path / "run"


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("file", ["_CHECKPOINT_METADATA", "state/manifest.ocdbt"])
def test_a_damaged_checkpoint_is_named_and_left_alone_unless_told(
    whole, tmp_path, damage, file, capfd
):
    workdir = copied(whole, tmp_path)
    damage(workdir / "checkpoints" / "12" / file)
    with pytest.raises(DamagedCheckpoint) as error:
        run(workdir, resume=True)
    message = str(error.value)
    assert message.startswith(str(workdir / "checkpoints" / "12"))
    assert f"damaged: {file} is " in message
    assert "fallback=True to continue from step 8" in message
    assert capfd.readouterr().err == ""
    assert Checkpoints(workdir / "checkpoints").steps() == [8, 12]


def test_told_to_fall_back_it_continues_from_the_one_before(whole, tmp_path):
    workdir = copied(whole, tmp_path)
    truncate(workdir / "checkpoints" / "12" / "state" / "manifest.ocdbt")
    state = run(workdir, resume=True, fallback=True)
    assert values(state) == values(whole[1])
    assert Checkpoints(workdir / "checkpoints").steps() == [8, 12]


def test_no_intact_checkpoint_is_an_error_and_deletes_nothing(whole, tmp_path):
    workdir = copied(whole, tmp_path)
    for step in (8, 12):
        truncate(workdir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA")
    with pytest.raises(DamagedCheckpoint, match=r"checkpoints/12: .*no intact one"):
        run(workdir, resume=True, fallback=True)
    assert Checkpoints(workdir / "checkpoints").steps() == [8, 12]


def test_a_checkpoint_that_was_not_closed_does_not_count(whole, tmp_path):
    workdir = copied(whole, tmp_path)
    (workdir / "checkpoints" / "12" / "SHA256SUMS").unlink()
    assert Checkpoints(workdir / "checkpoints").latest() == 8
    assert values(run(workdir, resume=True)) == values(whole[1])
    assert Checkpoints(workdir / "checkpoints").steps() == [8, 12]


def resummed(folder):
    """Make the sums of a checkpoint anew, as whoever changed it on purpose would."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n"
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "SHA256SUMS"
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def placed(place):
    def change(path):
        document = json.loads(path.read_text())
        document["custom_metadata"] = {"data": place}
        path.write_text(json.dumps(document))

    return change


def written(content):
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("state/manifest.ocdbt", written(b"")),
        ("state/manifest.ocdbt", written(b"\x00" * 100)),
        ("state/_METADATA", written(b"[" * 100_000 + b"]" * 100_000)),
        ("state/_METADATA", written(b"{}")),
        ("_CHECKPOINT_METADATA", written(b"\xff\xfe")),
        ("_CHECKPOINT_METADATA", written(b"[" * 100_000 + b"]" * 100_000)),
        ("_CHECKPOINT_METADATA", written(b"null")),
        ("_CHECKPOINT_METADATA", placed({"next_index": -1})),
        ("_CHECKPOINT_METADATA", placed({"next_index": 1, "more": 2})),
        ("_CHECKPOINT_METADATA", placed(None)),
    ],
)
def test_files_that_were_changed_with_their_sums(whole, tmp_path, file, change):
    workdir = copied(whole, tmp_path)
    folder = workdir / "checkpoints" / "12"
    change(folder / file)
    resummed(folder)
    with pytest.raises(CheckpointError) as error:
        run(workdir, resume=True)
    message = str(error.value)
    assert message.startswith(str(folder)) and len(message) < 1500


def test_arrays_of_another_shape_with_their_sums(whole, tmp_path):
    workdir = copied(whole, tmp_path)
    folder = workdir / "checkpoints" / "12"
    arrays = ocp.load(folder)
    metadata = ocp.metadata(folder).custom_metadata
    name = next(name for name in arrays if name.startswith("trainable"))
    arrays[name] = arrays[name][:1]
    ocp.save(folder, arrays, overwrite=True, custom_metadata=metadata)
    resummed(folder)
    with pytest.raises(CheckpointError, match=f"{name}: expected float32"):
        run(workdir, resume=True)


def test_folders_that_are_no_checkpoints(whole, tmp_path):
    workdir = copied(whole, tmp_path)
    for name in ("38.bak", "-5", "\u0663", "007", "12 (copy)"):
        shutil.copytree(workdir / "checkpoints" / "8", workdir / "checkpoints" / name)
    (workdir / "checkpoints" / "99").write_text("a file")
    assert Checkpoints(workdir / "checkpoints").steps() == [8, 12]
    assert values(run(workdir, resume=True)) == values(whole[1])
    run(workdir, resume=True, steps=13)
    assert Checkpoints(workdir / "checkpoints").steps() == [12, 13]


def test_a_checkpoint_hashes_every_file_once(whole, tmp_path, monkeypatch):
    workdir, hashed = copied(whole, tmp_path), []
    digest = hashlib.file_digest

    def counted(stream, name):
        hashed.append(Path(stream.name).name)
        return digest(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    state = run(workdir, resume=True)
    files = (workdir / "checkpoints" / "12").rglob("*")
    names = sorted(path.name for path in files if path.is_file())
    names.remove("SHA256SUMS")
    assert sorted(hashed) == names
    hashed.clear()
    Checkpoints(workdir / "checkpoints").save(
        state, train_batches(arrays(), BATCH, seed=5)
    )
    assert len(hashed) == len(names)


@pytest.mark.parametrize("line", ["", "00  ../../metrics.jsonl\n", "no digest\n"])
def test_a_list_of_digests_stays_in_its_folder(whole, tmp_path, line):
    workdir = copied(whole, tmp_path)
    (workdir / "checkpoints" / "12" / "SHA256SUMS").write_text(line)
    with pytest.raises(DamagedCheckpoint, match="SHA256SUMS is "):
        run(workdir, resume=True)


def test_a_checkpoint_of_another_optimizer_is_named(whole):
    step, state, variables = start(
        make_mesh(2, 4), rate=0.2, optimizer=make_optimizer("sgd", 0.1)
    )
    data = train_batches(arrays(), BATCH, seed=5)
    with pytest.raises(
        CheckpointError, match=r"another run(.|\n)*unexpected: opt_state"
    ):
        train(step, state, variables, data, steps=20, workdir=whole[0], resume=True)


def test_checkpoints_hold_the_adapters_and_not_the_base(whole):
    stored = ocp.metadata(whole[0] / "checkpoints" / "12").metadata
    sizes = {name: int(np.prod(found.shape)) for name, found in stored.items()}
    state = whole[1]
    assert sum(sizes.values()) == 2 + sum(
        x.size for x in jax.tree.leaves(state._replace(key=()))
    )
    base = {x.shape for x in jax.tree.leaves(case(0.2)[1])}
    kernels = {shape for shape in base if len(shape) == 2 and 5 not in shape}
    assert not kernels & {tuple(found.shape) for found in stored.values()}


def test_data_that_ends_early(tmp_path):
    data = train_batches(arrays(), BATCH, seed=5, epochs=1)
    with pytest.raises(ValueError, match="the data ended before step 6"):
        run(tmp_path, data=data, save_every=0)


def test_no_output_where_there_is_no_terminal(tmp_path, capfd):
    run(tmp_path, steps=2)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_the_progress_bar_shows_loss_and_speed(tmp_path, capfd):
    run(tmp_path, steps=3, progress=True)
    shown = capfd.readouterr().err
    final = losses(tmp_path)[-1]
    assert f"loss {final['loss']:.4g}" in shown
    assert "examples/s" in shown
    assert "3/3" in shown


def test_tensorboard_gets_the_same_numbers(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    run(tmp_path, steps=3, tensorboard=True, evaluate=score)
    assert list((tmp_path / "tensorboard").glob("events.*"))
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"peftjax\[tensorboard\]"):
        run(tmp_path / "other", steps=3, tensorboard=True)


@pytest.mark.parametrize(
    "line",
    [
        b'{"st',
        b"\xff\xfe",
        b"[" * 100_000 + b"]" * 100_000,
        b"[1]",
        b"null",
        b'{"loss": 1.0}',
        b'{"step": NaN}',
        b'{"step": 2.0}',
        b'{"step": true}',
        b'{"step": -1}',
        b'{"step": 2, "loss": NaN}',
        b'{"step": 2, "loss": 1e400}',
        b'{"step": 2, "loss": "0.5"}',
        b'{"step": 2, "eval": {"accuracy": null}}',
        b'{"step": 2, "eval": [1]}',
        b'{"step": 2, "loss": ' + b"1" * 5000 + b"}",
    ],
)
def test_a_damaged_metrics_file_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(RunFileError, match=r"metrics\.jsonl, line 2: ") as error:
        MetricsFile(path, after=3)
    assert len(str(error.value)) < 700
    assert path.read_bytes().count(b"\n") == 3


def test_a_metrics_file_is_cut_where_the_run_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "eval": {"pearson": NaN}}\n{"step": 3}\n{"ste')
    assert len(read_metrics(path)) == 2
    for content, what in (
        (b"\x1f\x8b\x08", "not JSON"),
        (b'{"step": 3}\n{"step": 2}\n', "of 3 or more, found 2"),
    ):
        (tmp_path / "other.jsonl").write_bytes(content)
        with pytest.raises(RunFileError, match=rf"other\.jsonl.*{what}"):
            read_metrics(tmp_path / "other.jsonl")
    MetricsFile(path, after=2).write({"step": 4})
    assert [json.loads(line)["step"] for line in path.open()] == [1, 4]


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
