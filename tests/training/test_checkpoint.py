"""Checkpoints: damaged, foreign and cut short; what they hold."""

import hashlib
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from peftjax.data.pipeline import train_batches
from peftjax.parallel.mesh import make_mesh
from peftjax.training.checkpoint import CheckpointError, Checkpoints, DamagedCheckpoint
from peftjax.training.loop import train
from peftjax.training.optimizer import make_optimizer
from tests.helpers.run_case import BATCH, run, score, values
from tests.helpers.training_case import arrays, case, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: folder and final state."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(workdir, evaluate=score, eval_every=6)


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
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(state, train_batches(arrays(), BATCH, seed=5))
    checkpoints.wait()
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


def test_a_bucket_that_orbax_does_not_write_gets_a_copy(whole, bucket):
    checkpoints, data = Checkpoints(bucket), train_batches(arrays(), BATCH, seed=5)
    checkpoints._via_disk = True  # as for s3://
    checkpoints.save(whole[1], data)
    assert checkpoints.steps() == [12]
    assert values(checkpoints.restore(whole[1], data)) == values(whole[1])
    (bucket / "12" / "state" / "_METADATA").write_text("{}")
    with pytest.raises(DamagedCheckpoint, match=r"_METADATA is truncated or changed"):
        checkpoints.restore(whole[1], data)


def test_a_process_writes_one_checkpoint_at_a_time(tmp_path):
    """Runs of several devices are threads, and orbax numbers its operations for all."""
    state, data = run(tmp_path / "run"), train_batches(arrays(), BATCH, seed=5)
    going, most = [], []

    class Writing:
        def __init__(self, made):
            self.made = made

        def result(self):
            time.sleep(0.05)
            going.remove(self.made)
            if self.made.parent.name == "bad":
                raise OSError("disk full")

    class Orbax:
        def save_async(self, made, *_, **__):
            made.mkdir(parents=True)
            going.append(made)
            most.append(len(going))
            return Writing(made)

    def save(name):
        checkpoints = Checkpoints(tmp_path / name)
        checkpoints._ocp = Orbax()
        for _ in range(3):
            checkpoints.save(state, data)
            checkpoints.wait()

    with ThreadPoolExecutor(3) as pool:
        *fine, bad = [pool.submit(save, name) for name in ("a", "b", "bad")]
        assert [one.result() for one in fine] == [None, None]
    with pytest.raises(OSError, match=r"bad/12: checkpoint not written: .*disk full"):
        bad.result()
    assert max(most) == 1 and len(most) == 7 and not going
