"""Trackers: TensorBoard and Weights & Biases get the numbers of metrics.jsonl."""

import json
import struct
import sys
from functools import partial

import pytest

from peftjax.training.trackers import TensorBoard, WandB
from tests.helpers.run_case import losses, run, score

BLOCK = 32768  # bytes of a LevelDB log


def test_tensorboard_gets_the_same_numbers(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    run(tmp_path, steps=3, trackers=[TensorBoard], evaluate=score)
    assert list((tmp_path / "tensorboard").glob("events.*"))
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"peftjax\[train\]"):
        TensorBoard(tmp_path)


def test_without_wandb_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install 'peftjax\[wandb\]'"):
        WandB(tmp_path, project="p", name="n", config={})


def records(file):
    """Yield the records of a file of wandb: a LevelDB log of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:  # no room for a header: padding
            place += BLOCK - place % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # the whole of a record, or its last part
            yield Record.FromString(whole)
            whole = b""


@pytest.mark.slow
def test_wandb_gets_the_same_numbers_and_goes_on(tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = partial(WandB, project="digits", name="lora", config={"seed": 3})
    run(tmp_path, steps=4, trackers=[tracker], evaluate=score)
    run(tmp_path, steps=6, trackers=[tracker], evaluate=score, resume=True)
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and capfd.readouterr() == ("", "")
    every = [record for file in files for record in records(file)]
    (name,) = {x.run.run_id for x in every if x.WhichOneof("record_type") == "run"}
    assert name  # one run, resumed
    told, kinds = {}, set()
    for record in every:
        items = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        kinds |= items.keys()
        if "loss" in items:
            told[items["_step"]] = items["loss"]
    expected = {x["step"]: x["loss"] for x in losses(tmp_path) if "loss" in x}
    assert told == expected
    assert {"eval/norm", "grad_norm", "examples_per_s"} <= kinds
