"""Runs in a bucket: claims without locks, and the same files as on a disk."""

import json
import threading

import numpy as np
import pytest

from experiments import claims, leases
from experiments.claims import LOCK, alone, claim
from experiments.leases import Busy, Lost
from experiments.workdir import RunFolder, claimed
from peftjax import storage
from peftjax.data import tables
from peftjax.hub.tensors import load_tree, save_tree
from peftjax.models.files import open_tensors
from peftjax.models.loading import load
from peftjax.training.metrics import MetricsFile, read_metrics


class Clock:
    """The seconds that leases count; whoever sleeps lets them pass."""

    def __init__(self):
        self.now = 0.0
        self.naps = []  # what happens while one sleeps

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        for nap in self.naps:
            nap()


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(leases, "time", made)
    monkeypatch.setattr(leases._Held, "_keep", lambda self: None)
    return made


def numbers(folder):
    return {file.name: file.read_text() != "" for file in storage.files(folder / LOCK)}


def test_a_claim_is_exclusive_and_free_at_once_after_it(bucket):
    with claim(bucket) as ours, claim(bucket) as second:
        assert ours is not None and second is None
        assert numbers(bucket) == {"1": True}
    assert numbers(bucket) == {"1": False}
    with claim(bucket) as ours:
        assert ours is not None
    assert numbers(bucket) == {"2": False}


def test_an_owner_that_lives_keeps_its_claim(bucket, clock):
    with claim(bucket) as ours:
        renew = ours.__self__.renew
        for _ in range(4):
            clock.now += 0.7 * leases.LEASE
            renew()
            with claim(bucket) as second:
                assert second is None
        ours()
        clock.naps.append(renew)
        with claim(bucket, wait=True) as second:
            assert second is None
        assert clock.now < 4 * leases.LEASE


def test_a_claim_is_renewed_until_it_ends(bucket, monkeypatch):
    renewed = threading.Event()
    monkeypatch.setattr(leases._Held, "renew", lambda self: renewed.set())
    monkeypatch.setattr(leases, "RENEWALS", 1000)
    with claim(bucket):
        assert renewed.wait(60)
    assert numbers(bucket) == {"1": False}


def test_a_claim_of_a_dead_process_falls_to_one_that_waits(bucket, clock):
    storage.create(bucket / LOCK / "7", "a process that was killed")
    with claim(bucket) as ours:
        assert ours is None
    with claim(bucket, wait=True) as ours:
        assert ours is not None and clock.now > leases.LEASE
        assert numbers(bucket) == {"8": True}


def test_an_owner_that_was_not_heard_of_has_lost_its_run(bucket, clock):
    with claimed(bucket) as folder:
        folder.settings = {}
        folder.own("settings.json")
        stop = folder.asking(None)
        assert not stop()
        with claim(bucket, wait=True) as second:
            assert second is not None
            for change in (stop, lambda: folder.own("result.json"), folder.clear):
                with pytest.raises(Lost, match=r"claim.lock: no longer ours"):
                    change()
            folder.check.__self__.renew()  # as it wakes up
            with pytest.raises(Lost):
                stop()
    # nor did it end the claim of the other, or delete what is there
    assert storage.names(bucket) == {LOCK, "settings.json"}
    found = json.loads((bucket / "settings.json").read_text())
    assert found["files"] == ["settings.json"]


def test_a_claim_that_was_deleted_is_lost(bucket):
    with claim(bucket) as ours:
        storage.remove(bucket)
        ours.__self__.renew()
        with pytest.raises(Lost, match="run the command again"):
            ours()
    assert storage.names(bucket) == set()


def test_who_looked_long_ago_gets_no_claim(bucket, monkeypatch):
    storage.create(bucket / LOCK / "9", "an owner")  # 1 to 8 were deleted
    with monkeypatch.context() as patch:
        patch.setattr(leases, "_last", lambda place: (5, ""))
        with claim(bucket) as ours:
            assert ours is None
    assert numbers(bucket) == {"9": True}


def test_another_is_waited_for(bucket, clock, monkeypatch):
    monkeypatch.setattr(claims, "time", clock)
    monkeypatch.setitem(claims.POLL_SECONDS, True, 25.0)
    storage.create(bucket / "plan.json.lock" / "1", "a process that was killed")
    with alone(bucket / "plan.json"):
        assert storage.names(bucket / "plan.json.lock") == {"2"}


def test_a_busy_run_and_bad_buckets_are_one_line(bucket, buckets):
    with claimed(bucket), pytest.raises(Busy, match="another process is at this run"):
        with claimed(bucket):
            pass
    for name, what in (("absent", "no such bucket"), ("forbidden", "Forbidden")):
        place = storage.path(f"gs://{name}/run")
        with pytest.raises(storage.BucketError, match=f"^{place}.*{what}.*in it$"):
            with claimed(place):
                pass
    for read in (load, lambda place: tables.find(place, "mine")):
        with pytest.raises(storage.BucketError, match=f"^{place}: .*Forbidden.*in it$"):
            read(place)


def test_a_foreign_file_in_a_bucket_is_not_replaced(bucket):
    storage.write_text(bucket / "result.json", "{}")
    with pytest.raises(FileExistsError, match=r"result.json: not a file of a run"):
        RunFolder(bucket)
    assert storage.names(bucket) == {"result.json"}


def test_lines_of_metrics_are_in_the_bucket_when_kept(bucket):
    file = MetricsFile(bucket / "metrics.jsonl")
    for step in (1, 2, 3):
        file.write({"step": step})
        assert storage.names(bucket) == set()
    file.keep()
    later = MetricsFile(bucket / "metrics.jsonl", after=2)
    later.write({"step": 5})
    later.keep()
    assert [x["step"] for x in read_metrics(bucket / "metrics.jsonl")] == [1, 2, 5]


def test_weights_and_tables_are_read_from_a_bucket(bucket):
    tree = {"params": {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3)}}
    save_tree(bucket / "base.safetensors", tree)
    found = load_tree(bucket / "base.safetensors", tree)
    assert np.array_equal(found["params"]["a"], tree["params"]["a"])
    (tensor,) = open_tensors(bucket / "base.safetensors").values()
    assert np.array_equal(tensor.read(), tree["params"]["a"])
    storage.write_text(bucket / "mine.csv", "text,label\nyes,1\nno,0\n")
    table = tables.read(tables.find(str(bucket), "mine"), ["text"], "label")
    assert table.texts == (["yes", "no"],) and table.labels.tolist() == [1, 0]
