"""Drawing digits: pictures during training, scores, and the same bits once resumed."""

import json

import numpy as np
import pytest

import peftjax as pj
from configs.diffusion.dit_digits import METHODS, config, get_config
from experiments import finetune, plan, samples, tasks
from experiments.benchmarks import dit_table
from experiments.tasks import diffusion, from_scratch
from peftjax.parallel.mesh import make_mesh
from peftjax.training.loop import Preempted

SMALL = {
    **{"model.depth": 1, "model.width": 16, "model.num_heads": 2, "model.mlp_dim": 32},
    **{"pretrain.epochs": 1, "train.epochs": 4, "train.eval_epochs": 2},
    **{"sampler.steps": 2, "data.samples": 10, "train.eval_batch": 20},
}


def files(folder):
    kept = ("*.safetensors", "samples/*.png")
    return {x.name: x.read_bytes() for kind in kept for x in folder.glob(kind)}


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(from_scratch, "mesh_of", lambda _: make_mesh(data=1))
    settings = get_config("method=hra")
    settings.update_from_flattened_dict({**SMALL, "paths.cache": str(tmp_path)})
    result = finetune.run(settings, tmp_path / "calm")
    with pytest.raises(Preempted):
        finetune.run(settings, tmp_path / "run", stop=lambda: True)
    again = finetune.run(settings, tmp_path / "run", resume=True)
    assert again["scores"] == result["scores"] and {*result["scores"]} == {
        "accuracy",
        "frechet",
    }
    found = files(tmp_path / "calm")
    assert files(tmp_path / "run") == found
    pictures = {"step_000002.png", "step_000004.png", "test.png"}
    assert {*found} == pictures | {"adapter.safetensors"}
    assert (tmp_path / "dit_digits-base.png").exists()
    held = json.loads((tmp_path / "calm" / "settings.json").read_text())["files"]
    assert "samples" in held


def test_data_and_scores():
    settings = config()
    found = tasks.family(settings).data(settings, choose=False)
    assert np.bincount(found.train["label"]).tolist() == [0] * 8 + [20, 20]
    assert found.train["image"].min() == -1 and found.train["image"].max() == 1
    assert found.test["noise"].shape == (100, 8, 8, 1)
    held = diffusion.real_rows(settings)()
    trained = {row.tobytes() for row in found.train["image"]}
    assert not trained & {row.tobytes() for row in held["image"]}
    score = diffusion.outline(settings).score
    real = score(held["label"], held["image"])
    assert real["accuracy"] > 0.95 and real["frechet"] == pytest.approx(0, abs=1e-6)
    noise = score(found.test["label"], found.test["noise"])
    assert noise["accuracy"] < 0.5 and noise["frechet"] > 50
    assert diffusion.data(settings, choose=True).test is None


@pytest.mark.parametrize("method", METHODS)
def test_rules_fit_the_model(method):
    settings = config(method=method)
    outline = diffusion.outline(settings)
    rules, apply = dict(settings.rules), outline.model.apply
    peft = pj.adapt(apply, outline.abstract(), *outline.example, rules=rules)
    assert "y_embed/embedding" in peft.trainable
    assert len(peft.sites) == (51 if method == "full" else 4 * 5 + 1)


def test_a_grid_has_a_row_for_each_digit():
    labels = np.array([8, 8, 9])
    picture = diffusion.picture(labels, np.ones((3, 8, 8, 1), np.float32))
    side = samples.ENLARGED * (8 + samples.GAP)
    assert picture.shape == (2 * side, 2 * side, 1) and picture.dtype == np.uint8
    assert picture[0, 0] == 255 and picture[-1, -1] == 128
    assert samples.grid([np.zeros((1, 64, 64, 3))]).shape == (65, 65, 3)


@pytest.mark.slow
def test_the_table_and_its_base_are_made_from_the_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(from_scratch, "mesh_of", lambda _: make_mesh(data=1))
    settings = config(method="hra")
    changes = {**SMALL, "paths.cache": str(tmp_path / "cache")}
    settings.update_from_flattened_dict(changes)
    place = plan.folder(tmp_path / "runs", settings)
    plan.plan(settings, tmp_path / "runs", [settings])
    with pytest.raises(ValueError, match="hra, seed 0: no score yet"):
        dit_table.methods(tmp_path / "runs")
    result = finetune.run(settings, place)
    monkeypatch.setattr(dit_table.dit_digits, "config", lambda: settings)
    dit_table.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "dit_digits.json").read_text())
    base, hra = found["rows"]
    assert hra["accuracy"] == [result["scores"]["accuracy"]] and hra["lr"] == 3e-2
    assert base["method"] == "base" and base["frechet"] != hra["frechet"]
    text = (tmp_path / "out" / "dit_digits.md").read_text()
    assert "| base | " in text and f"| hra | {100 * hra['accuracy'][0]:.1f} |" in text
    assert (tmp_path / "out" / "dit_digits.png").read_bytes().startswith(b"\x89PNG")
