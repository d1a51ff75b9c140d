"""Files written whole or not at all, and what killed processes leave."""

import json
import os
import platform
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from peftjax import storage
from peftjax.storage import BucketError


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


def test_a_path_of_a_bucket_is_one_also_after_pathlib(bucket):
    assert storage.in_bucket(bucket)
    assert storage.path(Path(str(bucket))) == storage.path(bucket) == bucket
    assert not storage.in_bucket(storage.path("runs/gs"))


def test_another_scheme_is_no_local_folder():
    with pytest.raises(BucketError, match=r"ftp://a/b: expected a local path, gs://"):
        storage.path("ftp://a/b")


def test_a_client_that_is_absent_is_named(monkeypatch):
    monkeypatch.setattr(storage.bucket, "CLIENTS", {"s3": "no_such_client"})
    storage.bucket._prepare.cache_clear()
    with pytest.raises(ImportError, match=r"s3:// needs no_such_client: pip install"):
        storage.path("s3://a/b")


def test_files_of_a_bucket(bucket):
    storage.write_json(bucket / "sub" / "a.json", {"x": 1})
    storage.write_text(bucket / "b", "two")
    assert storage.names(bucket) == {"sub", "b"}
    assert storage.files(bucket) == [bucket / "b", bucket / "sub" / "a.json"]
    assert json.loads((bucket / "sub" / "a.json").read_text()) == {"x": 1}
    assert storage.size(bucket / "b") == 3
    for place in (bucket / "sub", bucket / "b", bucket / "absent"):
        storage.remove(place)
    assert storage.names(bucket) == set()


def test_a_failure_leaves_the_old_object_and_nothing_else(bucket):
    storage.write_text(bucket / "a.json", "old")
    with pytest.raises(RuntimeError), storage.replacing(bucket / "a.json") as new:
        new.write_text("ne")
        raise RuntimeError
    assert storage.names(bucket) == {"a.json"}
    assert (bucket / "a.json").read_text() == "old"


def test_json_comes_last_into_a_folder_of_a_bucket(bucket, monkeypatch):
    order, upload = [], storage.bucket.upload

    def noted(file, target):
        order.append(file.name)
        upload(file, target)

    monkeypatch.setattr(storage.bucket, "upload", noted)
    with storage.replacing_folder(bucket / "model") as new:
        (new / "config.json").write_text("{}")
        (new / "model.safetensors").write_bytes(b"1")
    assert order == ["model.safetensors", "config.json"]
    with pytest.raises(FileExistsError), storage.replacing_folder(bucket / "model"):
        pass


def test_a_folder_that_cannot_be_uploaded_is_taken_back(bucket, monkeypatch):
    upload = storage.bucket.upload

    def full(file, target):
        if file.suffix == ".json":
            raise BucketError("full")
        upload(file, target)

    monkeypatch.setattr(storage.bucket, "upload", full)
    with pytest.raises(BucketError), storage.replacing_folder(bucket) as new:
        (new / "config.json").write_text("{}")
        (new / "model.safetensors").write_bytes(b"1")
    assert storage.names(bucket) == set()


def test_of_many_who_create_an_object_one_is_told_so(bucket):
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda i: storage.create(bucket / "x", str(i)), range(8)))
    assert sum(said) == 1
    assert (bucket / "x").read_text() == str(said.index(True))


def test_a_local_copy_follows_the_bucket(bucket):
    storage.write_text(bucket / "data" / "a.txt", "one")
    storage.write_text(bucket / "more", "")
    folder = storage.local(bucket / "data")
    assert names(folder.parent) == ["data"] and names(folder) == ["a.txt"]
    assert (folder / "a.txt").read_text() == "one"
    storage.write_text(bucket / "data" / "a.txt", "two")
    assert storage.local(bucket / "data" / "a.txt").read_text() == "two"
    assert storage.mirrored("here", "data") == Path("here")
    assert storage.local(bucket / "absent") == bucket / "absent"  # for the message


def test_an_object_cannot_lead_a_copy_elsewhere(bucket, monkeypatch):
    def find(folder, detail):
        return {f"{folder[5:]}/../../evil": {"type": "file"}}

    client = SimpleNamespace(find=find)
    monkeypatch.setattr(storage.bucket, "client", lambda place: client)
    with pytest.raises(BucketError, match=r"evil leads out of it"):
        storage.local(bucket / "data")


@pytest.mark.parametrize(
    ("name", "what"), [("absent", "no such bucket"), ("forbidden", "Forbidden")]
)
def test_a_bucket_that_may_not_be_used_is_one_line(buckets, name, what):
    place = storage.path(f"gs://{name}/run")
    with pytest.raises(BucketError) as error:
        storage.write_text(place / "a", "")
    text = str(error.value)
    assert text.startswith(f"{place}/a: ") and what in text and "\n" not in text
    assert f"expected that gs://{name} is there" in text
