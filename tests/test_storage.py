"""Files written whole or not at all, and what killed processes leave."""

import os
import platform
import stat
import subprocess
import sys

import pytest

from peftjax import storage


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def dead() -> int:
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    storage.write_text(tmp_path / "a.json", "old")
    with pytest.raises(RuntimeError), storage.replacing(tmp_path / "a.json") as new:
        new.write_text("ne")
        raise RuntimeError
    assert names(tmp_path) == ["a.json"] and (tmp_path / "a.json").read_text() == "old"


def test_the_mode_follows_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        storage.write_json(tmp_path / "a.json", {"x": 1})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644


def test_left_by_a_killed_process_is_removed_by_the_next(tmp_path):
    node = platform.node() or "local"
    left = tmp_path / f".a.json.{node}.{dead()}.tmp"
    living = tmp_path / f".a.json.{node}.{os.getppid()}.tmp"
    elsewhere = tmp_path / ".a.json.another-machine.1.tmp"
    for path in (left, living, elsewhere):
        path.write_text("half")
    storage.write_text(tmp_path / "a.json", "whole")
    assert names(tmp_path) == sorted(["a.json", living.name, elsewhere.name])


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    with storage.replacing_folder(target) as new:
        (new / "a").write_text("1")
        assert not any(target.iterdir())
    assert names(target) == ["a"] and names(tmp_path) == ["model"]
    with (
        pytest.raises(FileExistsError, match="absent or empty"),
        storage.replacing_folder(target),
    ):
        raise AssertionError("not reached")
    with pytest.raises(RuntimeError), storage.replacing_folder(tmp_path / "b") as new:
        (new / "a").write_text("1")
        raise RuntimeError
    assert names(tmp_path) == ["model"]


def test_json_without_nan(tmp_path):
    with pytest.raises(ValueError):
        storage.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert names(tmp_path) == []
