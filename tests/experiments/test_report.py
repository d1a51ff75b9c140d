"""The table of a folder of runs, from result files written by hand."""

import csv
import json
from typing import Any

import numpy as np
import pytest

from experiments import report
from experiments.published import FOLDER, Numbers
from tests.helpers.report_case import (
    ALL,
    FILES,
    GLUE,
    HARDWARE,
    SCORES,
    VERSIONS,
    VIT,
    below,
    cells,
    failed,
    fill,
    result,
    written,
)


@pytest.fixture
def pictures():
    """Draw, which takes a second each time."""


@pytest.fixture(autouse=True)
def no_picture(request, monkeypatch):
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(report.plot, "png", lambda *_: b"no picture")


def test_scores_are_means_and_sample_deviations_in_percent(tmp_path):
    document = written(fill(tmp_path, ALL))
    assert [row["label"] for row in document["rows"]] == ["lora", "hra"]
    for row, shown in zip(document["rows"], cells(tmp_path)):
        tasks = [
            100 * np.array(SCORES[task, row["method"]]) for task in ("cola", "mrpc")
        ]
        columns = {
            "cola": tasks[0],
            "mrpc": tasks[1],
            "average": np.mean(tasks, axis=0),
        }
        for name, values in columns.items():
            score = row["scores"][name]
            assert score["mean"] == pytest.approx(values.mean())
            assert score["std"] == pytest.approx(values.std(ddof=1))
            assert shown[name] == f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"
            assert score["finished"] == (6 if name == "average" else 3)
        size = 1000 + 100 * len(row["method"])
        assert row["trainable"] == {"min": size + 4, "max": size + 4}
        assert shown["trainable"] == f"{size + 4:,}" and shown["seconds"] == "3.0"
        assert shown["share %"] == f"{size / 1000:.2f}"
        assert shown["adapter KB"] == f"{4 * size / 1000:.1f}"
    assert document["hardware"] == [HARDWARE] and document["versions"] == [VERSIONS]
    assert document["date"]["first"] < document["date"]["last"] == ALL[2]["date"]
    assert "2026-11-20 to 2026-11-22" in below(tmp_path)


def test_heads_of_several_sizes_are_told_apart(tmp_path):
    fill(tmp_path, [result("cola", "lora", 0, 0.5), result("stsbb", "lora", 0, 0.5)])
    report.write(tmp_path)
    (row,) = cells(tmp_path)
    assert row["trainable"] == "1,404–1,405" and row["without head"] == "1,400"


def test_missing_and_failed_runs_are_shown(tmp_path):
    results = [
        *(result("a", "one", 0, 0.712), failed("a", "one", 1)),
        *(result("a", "two", seed, 0.7) for seed in (0, 1)),
        *(failed("a", "four", seed) for seed in (0, 1, 2)),
        failed("a", "five", 0),
        *(result("a", "six", 0, 0.5), failed("a", "six", 1)),
        result("a", "seven", 0, 0.25),
        result("a", "seven", 1, None),
        *(result("b", name, 0, 0.9) for name in ("one", "two", "three")),
    ]
    names = ("one", "two", "three", "four", "five", "six", "seven")
    planned = [("a", name, seed) for name in names for seed in (0, 1, 2)]
    planned = [x for x in planned if x not in (("a", "one", 2), ("a", "seven", 2))]
    planned += [("b", name, 0) for name in names]
    document = written(fill(tmp_path, results, planned))
    assert {row["method"]: (row["a"], row["average"]) for row in cells(tmp_path)} == {
        "one": ("71.2 (1 of 2 failed)", "80.6 (1 of 3 failed)"),
        "two": ("70.0 ± 0.0 (2 of 3 seeds)", "80.0 (3 of 4 runs)"),
        "three": ("missing", ""),
        "four": ("failed", ""),
        "five": ("1 of 3 failed, 2 missing", ""),
        "six": ("50.0 (1 of 3 failed, 1 missing)", ""),
        "seven": ("25.0 (1 of 2 failed)", ""),
    }
    assert "- four, a, seed 0, 1, 2 failed: step 7: the loss is nan" in below(tmp_path)
    assert "- seven, a, seed 1 failed: its accuracy is not finite" in below(tmp_path)
    assert document["rows"][2]["scores"]["average"]["mean"] is None
    assert "NaN" not in (tmp_path / "table.json").read_text()


@pytest.mark.usefixtures("pictures")
def test_no_result_at_all_is_a_table_too(tmp_path):
    document = written(fill(tmp_path, [], [("a", "lora", 0), ("b", "lora", 0)]))
    assert cells(tmp_path) == [
        {"method": "lora", "a": "missing", "b": "missing", "average": ""}
    ]
    assert document["hardware"] == [] and document["date"] == {}


def test_several_settings_of_a_method_are_rows(tmp_path):
    runs = [result("a", "lora", seed, 0.5 + seed / 10) for seed in (0, 1)]
    hashes = {("a", "lora", 1): "ffffffffff"}
    document = written(
        fill(tmp_path, [*runs, result("a", "hra", 0, 0.9)], hashes=hashes)
    )
    labels = ["lora (a1b2c3d4e5)", "lora (ffffffffff)", "hra"]
    assert [row["label"] for row in document["rows"]] == labels
    assert [row["a"] for row in cells(tmp_path)] == ["50.0", "60.0", "90.0"]


def test_settings_are_told_apart_on_all_tasks_by_what_the_command_line_said(tmp_path):
    """Two learning rates on two tasks, whose settings differ anyway: two rows."""
    hashes = {("a", "lora", 0): "1", ("a", "lora", 1): "2"}
    hashes |= {("b", "lora", 0): "3", ("b", "lora", 1): "4"}
    runs = [result(t, "lora", s, 0.5 + s / 10) for t in "ab" for s in (0, 1)]
    workdir = fill(tmp_path, runs, hashes=hashes)
    plan = json.loads((workdir / "plan.json").read_text())
    for run in plan["runs"]:
        run["variant"] = f"optim.lr={run['seed'] + 1}"
    (workdir / "plan.json").write_text(json.dumps(plan))
    rows = written(workdir)["rows"]
    labels = [row["label"] for row in rows]
    assert labels == ["lora (optim.lr=1)", "lora (optim.lr=2)"]
    means = [row["scores"]["average"]["mean"] for row in rows]
    assert means == pytest.approx([50.0, 60.0])


def test_settings_that_differ_between_tasks_are_one_row(tmp_path):
    hashes = {("b", "lora", 0): "ffffffffff"}
    runs = [result("a", "lora", 0, 0.5), result("b", "lora", 0, 0.6)]
    (row,) = written(fill(tmp_path, runs, hashes=hashes))["rows"]
    assert row["label"] == "lora"
    assert row["settings"] == {"a": "a1b2c3d4e5", "b": "ffffffffff"}


@pytest.mark.usefixtures("pictures")
def test_the_average_of_vtab_is_the_papers(tmp_path):
    """The published row of Hydra as our result: its group means, and no difference."""
    with (FOLDER / "vtab1k_datasets.csv").open() as stream:
        groups = {line["task"]: line["group"] for line in csv.DictReader(stream)}
    published = {"file": "vtab1k.csv", "backbone": VIT, "methods": {"ours": "Hydra"}}
    numbers = Numbers.of({"published": published})
    theirs = {task: numbers.score("ours", task) for task in groups}
    scores = {task: number.value for task, number in theirs.items() if number}
    for name, mean in (
        ("natural", 81.83),
        ("specialized", 85.95),
        ("structured", 61.66),
    ):
        assert (
            np.mean([scores[x] for x in groups if groups[x] == name]).round(2) == mean
        )
    runs = [result(task, "ours", 0, score / 100) for task, score in scores.items()]
    workdir = fill(tmp_path, runs, groups=groups, published=published)
    (row,) = written(workdir)["rows"]
    average = row["scores"]["average"]
    assert average["mean"] == pytest.approx(np.mean([81.83, 85.95, 61.66]), abs=0.01)
    assert round(average["published"]["value"], 1) == 76.5  # as the paper prints it
    assert average["difference"] == pytest.approx(0)
    assert cells(workdir)[0]["average"] == "76.5 [76.48, +0.0]"
    assert "mean of the means of the groups natural (cifar," in below(workdir)
    panels = (workdir / "table.png").read_bytes()
    assert panels.startswith(b"\x89PNG") and len(panels) > 50_000


def test_the_published_number_is_beside_the_cell(tmp_path):
    document = written(fill(tmp_path, ALL, published=GLUE, all_tasks=["mrpc", "cola"]))
    lora, hra = cells(tmp_path)
    assert list(lora)[:4] == ["method", "mrpc", "cola", "average"]
    mean = 100 * np.mean(SCORES["cola", "lora"])
    assert lora["cola"] == f"{mean:.1f} ± 1.6 [69.82, +{mean - 69.82:.1f}]"
    assert hra["mrpc"].endswith(
        f"[94.1, −{94.10 - 100 * np.mean([0.823, 0.844, 0.871]):.1f}]"
    )
    average = document["rows"][0]["scores"]["average"]
    assert average["published"]["value"] == pytest.approx((69.82 + 89.95) / 2)
    told = below(tmp_path)
    assert "Published: arXiv 2405.17484v3 Table 2 (GLUE dev) (lora; hra: cola)" in told
    assert "also 93.17 (arXiv 2405.17484v3 Figure 3 labels" in told
    assert "matthews_corr (cola)" in told


def test_only_an_average_of_the_same_tasks_is_compared(tmp_path):
    """A printed average counts where it is named and the table has all its tasks."""

    def average(name, published, **settings):
        workdir = fill(tmp_path / name, ALL, published=published, **settings)
        return written(workdir)["rows"][0]["scores"]["average"]["published"]

    half = {**GLUE, "metrics": {"mrpc": "matthews_corr"}}
    tasks = {**GLUE["tasks"], "average": "Average"}
    named, complete = {**half, "tasks": tasks}, {"all_tasks": ["cola", "mrpc"]}
    assert average("unnamed", half, **complete) is None
    assert average("part", named, all_tasks=["cola", "mrpc", "rte"]) is None
    assert average("whole", named, **complete)["value"] == 88.5


@pytest.mark.usefixtures("pictures")
def test_a_plan_orders_rows_like_its_configuration(tmp_path):
    names: dict[str, Any] = {
        "all_methods": ["hra", "lora"],
        "all_tasks": ["mrpc", "cola"],
    }
    whole = written(fill(tmp_path / "one", ALL, **names))
    assert [row["method"] for row in whole["rows"]] == ["hra", "lora"]
    written(fill(tmp_path / "other", ALL[::-1], **names))
    for file in FILES:
        one, other = tmp_path / "one" / file, tmp_path / "other" / file
        assert one.read_bytes() == other.read_bytes()


def test_what_was_measured_has_columns(tmp_path, capsys):
    measured = [
        result(
            "a", "lora", seed, 0.5, step_over_bound=over, merge_difference=difference
        )
        for seed, (over, difference) in enumerate(
            [(1.2, 1e-6), (1.9, 3e-6), (1.4, 2e-6)]
        )
    ]
    unmerged = {"step_over_bound": 2.0, "merge_difference": None}
    report.write(fill(tmp_path, [*measured, result("a", "gated", 0, 0.4, **unmerged)]))
    lora, gated = cells(tmp_path)
    assert (lora["step / bound"], lora["\\|adapted - merged\\|"]) == ("1.40", "3.0e-06")
    assert gated["\\|adapted - merged\\|"] == "none"
    assert "without head" not in lora and "timed in turn" in below(tmp_path)
    screen = capsys.readouterr().out
    assert "50.0 ± 0.0" in screen and "|adapted - merged|" in screen
