"""Few shots of a set: what is trained on, what is chosen on, and their curves."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from configs import defaults
from configs.fewshot import dinov2_small
from experiments import report
from experiments.report import curves
from experiments.report.rows import table
from experiments.report.runs import read
from experiments.run import Run
from experiments.tasks import own_images
from experiments.tasks.task import UnreadableData
from peftjax.data.folder import FolderError
from peftjax.parallel.mesh import make_mesh
from tests.helpers.report_case import fill, result

MODEL = Path(__file__).resolve().parents[1] / "files" / "models" / "vit"


@pytest.fixture
def config(tmp_path):
    draw, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 30), ("val", 6), ("test", 8)):
        arrays[f"{part}_images"] = draw.integers(0, 255, (count, 8, 8, 3), np.uint8)
        arrays[f"{part}_labels"] = np.arange(count) % 2
    np.savez(tmp_path / "pets.npz", **arrays)

    def of(shots, seed=0, **changes):
        return defaults.own_images(
            f"pets-{shots}",
            "linear",
            seed,
            str(MODEL),
            data={"set": "pets", "shots": shots, "size": 8, **changes.pop("data", {})},
            paths={"data": str(tmp_path), "model": str(MODEL)},
            **changes,
        )

    return of


def seen(part):
    return {image.tobytes() for image in part["image"]}


def test_all_shots_are_trained_on_and_a_fifth_is_chosen_on(config):
    last = own_images.data(config(5), False)
    assert np.bincount(last.train["label"]).tolist() == [5, 5]
    assert last.validation is None and len(last.test["label"]) == 8
    chosen = own_images.data(config(5), True)
    assert np.bincount(chosen.train["label"]).tolist() == [4, 4]
    assert np.bincount(chosen.validation["label"]).tolist() == [1, 1]
    assert chosen.test is None
    assert seen(chosen.train) | seen(chosen.validation) == seen(last.train)
    best = own_images.data(config(5, selection="best_on_validation"), False)
    assert seen(best.train) == seen(chosen.train) and len(best.test["label"]) == 8
    assert own_images.count(config(5)) == 10
    assert own_images.count(config(5, selection="best_on_validation")) == 8


def test_what_is_held_out_for_choices_is_trained_on_where_none_is_made(config):
    refit = {"data": {"refit": True}}
    last = own_images.data(config(0, **refit), False)
    chosen = own_images.data(config(0, **refit), True)
    assert last.validation is None
    assert seen(chosen.train) | seen(chosen.validation) == seen(last.train)
    assert len(last.train["label"]) == own_images.count(config(0, **refit))
    plain = own_images.data(config(0), False)
    assert seen(plain.train) == seen(chosen.train) and plain.validation is not None


def test_a_seed_draws_its_own_shots_unless_the_draw_is_given(config):
    def drawn(*args, **changes):
        return seen(own_images.data(config(*args, **changes), False).train)

    assert drawn(2, 0) < drawn(4, 0)
    assert drawn(4, 0) != drawn(4, 1)
    assert drawn(4, 0, data={"draw": 2}) == drawn(4, 1, data={"draw": 2})


def test_a_run_changes_its_images_where_the_configuration_says_so(config):
    def drawn(**data):
        one = SimpleNamespace(config=config(16, data=data))
        one.data = own_images.data(one.config, False)
        one.outline = own_images.outline(one.config)
        one.programs = SimpleNamespace(mesh=make_mesh())
        return next(Run.batches(cast(Run, one)))

    plain, changed, cropped = drawn(), drawn(augment=True), drawn(augment="cropped")
    np.testing.assert_array_equal(plain["label"], cropped["label"])
    assert plain["image"].shape == cropped["image"].shape
    assert all((a != b).any() for a, b in zip(plain["image"], cropped["image"]))
    np.testing.assert_array_equal(plain["label"], changed["label"])
    assert (plain["image"] != changed["image"]).any()
    assert plain["image"].shape == changed["image"].shape


def test_shots_that_cannot_be_are_told(config):
    with pytest.raises(UnreadableData, match="choosing takes two shots or more"):
        own_images.data(config(1), True)
    with pytest.raises(FolderError, match=r"class '0': expected at least 19 exa.* 18"):
        own_images.data(config(19), False)


def test_the_tasks_of_the_configuration_are_sizes_of_sets():
    config = dinov2_small.get_config("task=mnist-2,method=hra,seed=1")
    assert (config.data.set, config.data.shots) == ("mnist_1k", 2)
    assert config.train.batch == 20 and config.seed == 1
    assert dinov2_small.get_config("task=mnist-16").train.batch == 32
    assert set(config.table.all_tasks) == {
        task for own in config.table.curves.values() for task in own
    }


CURVES = {"pets": {"pets-1": 1, "pets-4": 4}, "cars": {"cars-1": 1}}


def runs():
    scores = {"lora": {"pets-1": 0.5, "pets-4": 0.9}, "hra": {"pets-4": 0.7}}
    return [
        result(task, method, seed, score + 0.1 * seed)
        for method, own in scores.items()
        for task, score in own.items()
        for seed in (0, 1)
    ]


def test_the_curves_are_means_with_bands(tmp_path):
    plan, found = read(fill(tmp_path, runs(), curves=CURVES))
    figure = curves.draw(table("a_table", found, plan["table"]), CURVES)
    (axes,) = figure.axes  # no cars were run
    assert axes.get_title() == "pets"
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {
        "lora": [[1, pytest.approx(55)], [4, pytest.approx(95)]],
        "hra": [[4, pytest.approx(75)]],
    }
    low, high = axes.collections[0].get_datalim(axes.transData).intervaly
    spread = 10 / 2**0.5
    assert low == pytest.approx(55 - spread) and high == 100  # no more than all


def test_a_table_of_sizes_has_curves(tmp_path, monkeypatch):
    monkeypatch.setattr(report.plot, "png", lambda *_: b"no picture")
    report.write(fill(tmp_path / "with", runs(), curves=CURVES))
    assert (tmp_path / "with" / "curves.png").read_bytes().startswith(b"\x89PNG")
    plan = json.loads((tmp_path / "with" / "plan.json").read_text())
    assert "curves.png" in plan["files"]
    report.write(fill(tmp_path / "without", runs()))
    assert not (tmp_path / "without" / "curves.png").exists()
