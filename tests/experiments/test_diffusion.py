"""Drawing digits: pictures during training, scores, and the same bits once resumed."""

import json

import numpy as np
import pytest

import peftjax as pj
from configs.diffusion.dit_digits import METHODS, config, get_config
from experiments import finetune, samples, tasks
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
