"""Whose the files of a folder are: nothing that is not a run's is touched."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from configs.quickstart import config as quickstart
from experiments import finetune, records, table
from experiments.documents import DamagedFile
from experiments.finetune import main
from experiments.plan import folder as run_folder
from experiments.tasks.task import Data
from experiments.workdir import (
    BEST,
    CHECKPOINTS,
    RESULT,
    SETTINGS,
    Busy,
    ForeignFile,
    RunFolder,
    claimed,
)
from peftjax.training import checkpoint
from peftjax.training.checkpoint import Checkpoints
from peftjax.training.loop import NonFiniteLoss

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = ("adapter.safetensors", "best.json", "metrics.jsonl", RESULT, CHECKPOINTS)


@pytest.fixture
def training(monkeypatch):
    """Replace the training; return what to set to make it fail."""

    class Run:
        def __init__(self, config, cache, stop):
            self.config = config
            self.outline = type("", (), {"metric": "accuracy", "note": ""})
            split = {"label": np.zeros(3, int)}
            self.data = Data(split, split, split)

    def trained(run, folder, resume, stop, tell):
        for name in (CHECKPOINTS, "adapter.json", "adapter.safetensors"):
            folder.own(name)
            (folder.path / name).touch()
        if fails:
            raise fails[0]
        sizes = dict.fromkeys(("trainable", "trainable_without_head", "share"), 1)
        return {"scores": {"accuracy": 0.5}, "adapter_bytes": 1, **sizes}

    fails = []
    monkeypatch.setattr(finetune, "Run", Run)
    monkeypatch.setattr(finetune, "_trained", trained)
    return fails


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name != "claim.lock"
    }


def put(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    if name == CHECKPOINTS:
        (folder / name / "3").mkdir(parents=True)
        (folder / name / "3" / "SHA256SUMS").write_text("of someone")
    else:
        (folder / name).write_text("of someone")


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"force": True}])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_refused_and_kept(tmp_path, training, name, options):
    put(tmp_path, name)
    before = content(tmp_path)
    with pytest.raises(ForeignFile, match=f"{name}: not a file of a run"):
        finetune.run(quickstart(), tmp_path, **options)
    assert content(tmp_path) == before
    assert not (tmp_path / "claim.lock").exists()


@pytest.mark.parametrize("text", ['{"optim.lr": 1}', "[]", "{", '{"kind": "x"}'])
def test_settings_of_something_else_are_refused(tmp_path, training, text):
    (tmp_path / SETTINGS).write_text(text)
    with pytest.raises(
        (ForeignFile, DamagedFile), match=r"settings\.json: .*--workdir"
    ):
        finetune.run(quickstart(), tmp_path, force=True)
    assert (tmp_path / SETTINGS).read_text() == text


def test_a_manifest_lists_no_file_outside_of_runs(tmp_path, training):
    finetune.run(quickstart(), tmp_path / "run")
    file = tmp_path / "run" / SETTINGS
    (tmp_path / "mine.txt").write_text("")
    manifest = json.loads(file.read_text())
    manifest["files"].append("../mine.txt")
    file.write_text(json.dumps(manifest))
    with pytest.raises(DamagedFile, match=r"settings\.json"):
        finetune.run(quickstart(), tmp_path / "run", force=True)
    assert (tmp_path / "mine.txt").exists()


def test_a_finished_run_owns_what_it_left(tmp_path, training):
    (tmp_path / "mine.txt").write_text("")
    finetune.run(quickstart(), tmp_path)
    left = {path.name for path in tmp_path.iterdir()} - {"claim.lock", "mine.txt"}
    assert set(json.loads((tmp_path / SETTINGS).read_text())["files"]) == left
    assert left == {"adapter.json", "adapter.safetensors", RESULT, SETTINGS}
    put(tmp_path, CHECKPOINTS)  # put there after the run: not the run's
    with pytest.raises(ForeignFile, match=CHECKPOINTS):
        finetune.run(quickstart(), tmp_path, force=True)


def test_force_deletes_the_run_and_nothing_else(tmp_path, training):
    (tmp_path / "mine.txt").write_text("")
    finetune.run(quickstart(), tmp_path)
    with claimed(tmp_path) as folder:
        folder.clear()
    names = {path.name for path in tmp_path.iterdir()} - {"claim.lock"}
    assert names == {"mine.txt"}


def test_a_link_is_taken_away_and_not_what_it_leads_to(tmp_path, training):
    other = tmp_path / "other"
    put(other, CHECKPOINTS)
    finetune.run(quickstart(), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.own(CHECKPOINTS)
    (tmp_path / "run" / CHECKPOINTS).symlink_to(other / CHECKPOINTS)
    folder.drop(CHECKPOINTS)
    assert not (tmp_path / "run" / CHECKPOINTS).exists()
    assert (other / CHECKPOINTS / "3" / "SHA256SUMS").exists()


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path, training):
    finetune.run(quickstart(), tmp_path)
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match="--resume"):
        finetune.run(quickstart(), tmp_path)
    with pytest.raises(FileExistsError, match=r"seed: expected 1, found 0"):
        finetune.run(quickstart(seed=1), tmp_path, resume=True)
    assert content(tmp_path) == before


def test_a_run_that_failed_is_returned_and_not_tried_again(tmp_path, training):
    training.append(NonFiniteLoss("step 7: loss nan"))
    found = finetune.run(quickstart(), tmp_path)
    training.clear()
    assert finetune.run(quickstart(), tmp_path, resume=True) == found
    assert (found["status"], found["error"]) == ("failed", "step 7: loss nan")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda x: x.update(status="finishd"),
            "Invalid value 'finishd' - at `[$].status",
        ),
        (lambda x: x.update(status=["finished"]), "Expected `str`, got `list` - at"),
        (lambda x: x.pop("scores"), "missing required field `scores`"),
        (lambda x: x.update(scores={}), "scores lack the metric accuracy"),
        (lambda x: x.update(scores=3), "got `int` - at `[$].scores`"),
        (lambda x: x.pop("trainable"), "field `trainable`"),
        (lambda x: x.pop("config"), "expected the config of a run"),
        (lambda x: x["config"].update(seed=5), "of another run: seed: expected 0"),
        (lambda x: x["config"]["optim"].update(lr=5), "another run: optim.lr"),
        (lambda x: x["config"].update(paths=3), "at `[$].config.paths`"),
    ],
)
def test_resume_takes_only_a_whole_result_of_this_run(tmp_path, training, change, told):
    found = finetune.run(quickstart(), tmp_path)
    change(found)
    (tmp_path / RESULT).write_text(json.dumps(found))
    with pytest.raises(DamagedFile, match=rf"result\.json: .*{told}"):
        finetune.run(quickstart(), tmp_path, resume=True)


def test_one_process_is_at_a_run(tmp_path, training):
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from experiments.workdir import claimed\n"
        "with claimed(Path(sys.argv[1])):\n    print(flush=True)\n    input()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, **pipes) as other:
        assert other.stdout is not None and other.stdin is not None
        other.stdout.readline()
        for options in ({}, {"resume": True}, {"force": True}):
            with pytest.raises(Busy, match="another process is at this run"):
                finetune.run(quickstart(), tmp_path, **options)
        other.stdin.write("\n")
        other.stdin.close()
        other.wait()
    assert finetune.run(quickstart(), tmp_path)["status"] == "finished"


def test_what_a_killed_process_left_is_taken_away(tmp_path, training):
    """Killed between its result and the last of its tidying."""
    finetune.run(quickstart(), tmp_path)
    before = content(tmp_path)
    folder = RunFolder(tmp_path)
    folder.own(CHECKPOINTS)
    put(tmp_path, CHECKPOINTS)
    (tmp_path / f".{SETTINGS}.{records.platform.node()}.999999999.tmp").touch()
    finetune.run(quickstart(), tmp_path, resume=True)
    assert content(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, training, monkeypatch):
    monkeypatch.chdir(ROOT)
    file = tmp_path / "file"
    file.write_text("")
    for workdir in (file, file / "run"):
        arguments = ["--config", "configs/quickstart.py", "--workdir", str(workdir)]
        with pytest.raises(SystemExit, match=f"Error: .*{file}") as caught:
            main(arguments)
        assert len(str(caught.value.code).splitlines()) == 1

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    monkeypatch.setattr(finetune.storage.os, "replace", full)
    with pytest.raises(SystemExit, match="No space left on device: 'x'"):
        main([*arguments[:2], "--workdir", str(tmp_path / "run")])


def test_a_table_refuses_what_a_run_refuses(tmp_path, training):
    config = quickstart()
    put(run_folder(tmp_path, config), f"{BEST}.json")
    for does in (table.fill, table.clear):
        with pytest.raises(ForeignFile, match=r"best\.json"):
            does(tmp_path, [config])


def test_a_checkpoint_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise ValueError("OUT_OF_RANGE: Failed writing: no space\nand where, at length")

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(checkpoints._ocp, "save_async", full)
    monkeypatch.setattr(checkpoint, "_arrays", lambda state: {})
    state: Any = SimpleNamespace(step=3)
    data = SimpleNamespace(get_state=dict)
    with pytest.raises(OSError, match=rf"{tmp_path}/3: checkpoint not written: .*OUT_"):
        checkpoints.save(state, data)
