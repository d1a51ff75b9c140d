"""What a table says of itself: seeds, splits, majority class, abandoned settings."""

import json

import pytest
from matplotlib.collections import LineCollection
from matplotlib.text import Text

from experiments import report
from experiments.documents import DamagedFile
from experiments.report import plot
from experiments.report.__main__ import main
from experiments.report.caption import Caption
from experiments.report.rows import table
from experiments.report.runs import read
from experiments.workdir import ForeignFile
from tests.helpers.report_case import ALL, below, cells, fill, result, written


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """Leave out what takes a second each time."""
    monkeypatch.setattr(report.plot, "png", lambda *_: b"no picture")


def planned(workdir, change):
    file = workdir / "plan.json"
    plan = json.loads(file.read_text())
    change(plan)
    file.write_text(json.dumps(plan))
    return workdir


def test_abandoned_settings_are_no_rows_and_are_told(tmp_path, capsys):
    hashes = {("a", "lora", seed): "ffffffffff" for seed in (5, 6)}
    runs = [result("a", "lora", 0, 0.5), result("a", "lora", 5, 0.75)]
    keys = [("a", "lora", 0), *hashes]
    workdir = fill(tmp_path, runs, keys, hashes=hashes)

    def abandon(plan):
        for run in plan["runs"][1:]:
            run["abandoned"] = True

    (row,) = written(planned(workdir, abandon))["rows"]
    assert (row["label"], row["scores"]["a"]["mean"]) == ("lora", 50.0)
    told = "lora, a, settings ffffffffff: 75.0 (1 of 2 seeds)"
    assert told in below(workdir) and told in capsys.readouterr().out
    assert told in (workdir / "table.tex").read_text()
    main([str(workdir), "--drop-abandoned"])
    assert "dropped a/lora-ffffffffff/seed5" in capsys.readouterr().out
    assert "abandoned" not in below(workdir)
    assert len(json.loads((workdir / "plan.json").read_text())["runs"]) == 1
    assert (workdir / "a/lora-ffffffffff/seed5/result.json").exists()
    spoiled = planned(workdir, lambda plan: plan["runs"][0].update(abandoned=True))
    with pytest.raises(DamagedFile, match="expected runs, found none"):
        report.write(spoiled)


def test_files_of_someone_else_are_not_replaced(tmp_path):
    fill(tmp_path, ALL)
    (tmp_path / "table.csv").write_text("mine")
    with pytest.raises(ForeignFile, match=r"table\.csv: not written by this table"):
        report.write(tmp_path)
    assert (tmp_path / "table.csv").read_text() == "mine"
    assert not (tmp_path / "table.md").exists()
    (tmp_path / "table.csv").unlink()
    for _ in range(2):
        report.write(tmp_path)


def test_a_task_may_be_shown_and_not_averaged(tmp_path):
    scores = {"cola": 0.5, "mrpc": 0.7, "wnli": 0.1}
    runs = [result(task, "lora", s, x) for task, x in scores.items() for s in (0, 1)]
    (row,) = written(fill(tmp_path, runs, not_averaged=["wnli"]))["rows"]
    average = row["scores"]["average"]
    assert average["mean"] == pytest.approx(60) and average["std"] == pytest.approx(0)
    assert average["finished"] == 4 and row["scores"]["wnli"]["mean"] == 10
    assert "Average: mean over the tasks, wnli left out." in below(tmp_path)
    assert list(cells(tmp_path)[0])[:5] == ["method", *scores, "average"]


def test_seeds_splits_and_the_majority_class_are_stated(tmp_path):
    def facts(task):
        share = {"cola": 0.691, "mrpc": 0.684, "stsb": None}[task]
        return {"examples": {"train": 800, "reported": 100}, "majority": share}

    tasks = ("cola", "mrpc", "stsb")
    one = [result(task, "lora", 0, 0.5, **facts(task)) for task in tasks]
    written(fill(tmp_path / "one", one))
    told = below(tmp_path / "one")
    assert "Seeds 0: one run each, so that no spread is shown." in told
    assert "Examples trained on: 800; reported: 100." in told
    assert "Majority class: 69.1 % (cola), 68.4 % (mrpc)." in told
    assert "±" not in (tmp_path / "one" / "table.md").read_text()
    two = [result("cola", "lora", seed, 0.5, **facts("cola")) for seed in (0, 1)]
    written(fill(tmp_path / "two", two))
    assert "Seeds 0, 1: mean ± sample standard" in below(tmp_path / "two")


def test_the_figure_states_them_too_and_its_bars_end_at_100(tmp_path):
    facts = {"examples": {"train": 800, "reported": 100}, "majority": 0.691}
    runs = [
        *(result("a", "lora", seed, x, **facts) for seed, x in enumerate((1.0, 0.9))),
        *(result("b", "lora", seed, x, **facts) for seed, x in enumerate((1.0, 0.98))),
        result("a", "hra", 0, 0.95, **facts),
        result("b", "hra", 0, 0.95, **facts),
    ]
    plan, found = read(fill(tmp_path, runs))
    drawn = table(plan["name"], found, plan["table"])
    figure = plot.draw(drawn, Caption.of(drawn))
    texts = " ".join(" ".join(x.get_text().split()) for x in figure.findobj(Text))
    for told in ("test split", "Seeds 0, 1", "reported: 100", "Majority class: 69.1 %"):
        assert told in texts
    bars = [bar for bar in figure.findobj(LineCollection) if len(bar.get_segments())]
    ends = [end for bar in bars for line in bar.get_segments() for end in line]
    assert len(bars) == 3  # two tasks and the average of the method of two seeds
    assert max(max(end) if max(end) < 1000 else end[1] for end in ends) <= 100


def test_where_steps_are_timed_scores_are_drawn_against_them_too(tmp_path):
    runs = [
        result("a", "lora", 0, 0.9, step_over_bound=1.25),
        result("a", "hra", 0, 0.8, step_over_bound=1.5),
        result("a", "oft", 0, 0.7),
    ]
    plan, found = read(fill(tmp_path, runs))
    drawn = table(plan["name"], found, plan["table"])
    size, time = plot.draw(drawn, Caption.of(drawn)).axes
    assert "parameters" in size.get_xlabel() and "time" in time.get_xlabel()
    written = {x.get_text(): x.xy for x in time.texts if x.get_text()}
    assert written["lora"] == (1.25, 90.0) and written["hra"] == (1.5, 80.0)
    assert "not timed: oft" in written and "oft" in {x.get_text() for x in size.texts}
