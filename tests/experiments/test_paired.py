"""Methods of equal size, each at its own rate, beside one of them."""

import json

import jax
import numpy as np
import pytest

import peftjax as pj
from configs import equal_size
from configs.glue import equal_size as mrpc
from experiments import tasks
from experiments.paired import bootstrap
from experiments.paired.__main__ import best, main
from peftjax.training.loop import NonFiniteLoss
from tests.experiments.test_table import SMALL

SIZES = [(equal_size, "head/", 16_384), (mrpc, ("pooler/", "classifier/"), 165_888)]
CASES = [(*case, method) for case in SIZES for method in case[0].METHODS]


@pytest.mark.parametrize(("where", "head", "size", "method"), CASES)
def test_sizes_are_within_five_percent(where, head, size, method):
    config = where.config(method=method)
    outline = tasks.family(config).outline(config)
    peft = pj.adapt(
        outline.model.apply,
        outline.abstract(),
        *outline.example,
        rules=dict(config.rules),
    )
    outside = [n for path, n in peft.trainable.items() if not path.startswith(head)]
    assert sum(outside) == pytest.approx(size, rel=0.05)


def test_the_interval_covers_as_often_as_it_says():
    rng, covered, trials = np.random.default_rng(0), 0, 100

    def accuracy(labels, outputs):
        return (outputs == labels).mean()

    for _ in range(trials):
        labels = np.ones(80)
        hard = rng.random(80) < 0.3  # for both methods, so that pairing matters
        mine, theirs = (
            ((rng.random((3, 80)) < p) & ~(hard & (rng.random((3, 80)) < 0.7))) * 1.0
            for p in (0.9, 0.8)
        )
        true = 0.1 * (1 - 0.3 * 0.7)
        drawn = [bootstrap.scores(accuracy, labels, x, 200) for x in (mine, theirs)]
        found = bootstrap.difference(*drawn)
        covered += found.low <= true <= found.high
    assert 0.9 * trials <= covered  # seeds are few, so it may cover a little too often


def test_unequal_seeds_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 4\), \(1, 5\)"):
        bootstrap.difference(np.ones((1, 4)), np.ones((1, 5)))


def test_no_rate_of_those_that_diverged():
    nan = float("nan")
    assert best({0.1: nan, 0.2: 0.5}) == 0.2
    with pytest.raises(NonFiniteLoss, match=r"every rate: 0\.1, 0\.2"):
        best({0.1: nan, 0.2: nan})


@pytest.mark.slow
def test_a_comparison(tmp_path, capsys):
    settings = {**SMALL, "train.eval_epochs": 2, "paths.cache": tmp_path / "cache"}
    command = [
        *("--config", "configs/equal_size.py", "--tasks", "digits"),
        *("--methods", "hra,lora", "--seeds", "2", "--choosing", "1"),
        *("--workdir", str(tmp_path / "runs"), "--out", str(tmp_path / "found")),
        *(f"--config.{key}={value}" for key, value in settings.items()),
        *("--config.grid=(0.01,0.03)", "--config.parallel.data=1"),
    ]
    main(command)
    found = json.loads((tmp_path / "found.json").read_text())
    rows = found["tasks"]["digits"]
    assert list(rows) == ["lora", "hra"] and "difference" not in rows["lora"]
    for row in rows.values():
        held_out = {float(rate): score for rate, score in row["rates"].items()}
        assert row["rate"] == best(held_out) and len(row["scores"]) == 2
    difference = rows["hra"]["difference"]
    assert difference["low"] <= difference["mean"] <= difference["high"]
    means = [np.mean(rows[method]["scores"]) for method in ("hra", "lora")]
    assert difference["mean"] == pytest.approx(means[0] - means[1])
    lines = (tmp_path / "found.md").read_text().splitlines()
    assert lines[0].startswith("| digits | accuracy | rate |")
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    sweep = (tmp_path / "runs" / "sweep.jsonl").read_text()
    assert len(sweep.splitlines()) == 4 and jax.device_count() == 8

    main(command)  # repeats nothing, and says the same
    assert (tmp_path / "runs" / "sweep.jsonl").read_text() == sweep
    assert "finished before" in capsys.readouterr().out
    again = json.loads((tmp_path / "found.json").read_text())
    assert again["tasks"] == found["tasks"]
