"""DreamBooth and drawing from a signal, whole runs on a tiny random pipeline."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import peftjax as pj
from configs.diffusion import sd15_control, sd15_dreambooth
from experiments import finetune, tasks
from experiments.checks import UnfitSettings
from experiments.run import Run
from experiments.tasks import latents, likeness
from experiments.tasks.task import UnreadableData
from peftjax.data.errors import DataError
from peftjax.data.images import png
from peftjax.data.source import MissingData
from peftjax.diffusion import NoiseSchedule
from tests.helpers.model_cases import MODELS, same_tree
from tests.helpers.pipeline_case import SIZE, make_photographs, make_pipeline

pytestmark = pytest.mark.slow
pytest.importorskip("tokenizers", reason="needs peftjax[text]")

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ("a qwe cat", "a red qwe cat")
SMALL = {
    **{"data.size": SIZE, "sampler.steps": 2, "train.eval_batch": 2},
    **{"train.eval_epochs": 1, "parallel.data": 1, "optim.lr": 1e-2},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a pipeline, photographs, and pairs."""
    root = tmp_path_factory.mktemp("text_to_image")
    make_pipeline(root / "sd")
    make_photographs(root / "data" / "cat", 2)
    for part, count in (("train", 4), ("test", 3)):
        folder = root / "data" / "segm"
        lines = []
        for kind in ("image", "signal"):
            make_photographs(folder / f"{part}_{kind}", count, (20, 24, 3), seed=count)
        for i in range(count):
            names = {k: f"{part}_{k}/{i}.png" for k in ("image", "signal")}
            lines.append(json.dumps({**names, "prompt": f"cat {i}"}))
        (folder / f"{part}.jsonl").write_text("\n".join(lines))
    return root


def subject(place, method="hra0", **more):
    config = sd15_dreambooth.config("cat", method)
    paths = {"model": "sd", "data": "data", "cache": "cache"}
    given = {f"paths.{name}": str(place / path) for name, path in paths.items()}
    own = {"data.prior.images": 3, "data.samples": 1, "train.epochs": 2}
    config.update_from_flattened_dict({**SMALL, **given, **own, **more})
    config.data.prompts = config.data.shown = PROMPTS
    return config


def control(place, **more):
    config = sd15_control.config("segm", "hra0")
    given = {f"paths.{n}": str(place / p) for n, p in (("model", "sd"), ("data",) * 2)}
    own = {"train.batch": 2, "train.epochs": 1, "data.shown": 2}
    config.update_from_flattened_dict({**SMALL, **given, **own, **more})
    return config


def kept(folder):
    names = ("*.safetensors", "samples/*.png")
    return {x.name: x.read_bytes() for kind in names for x in folder.glob(kind)}


@pytest.fixture(scope="module")
def calm(place, tmp_path_factory):
    """Return the folder of a whole run, and its result."""
    folder = tmp_path_factory.mktemp("calm")
    return folder, finetune.run(subject(place), folder / "run")


def test_a_subject_is_trained_drawn_and_scored(place, calm):
    folder, result = calm
    assert result["status"] == "finished" and result["metric"] == "vae_i"
    assert "clip_i, clip_t (no --config.paths.clip)" in result["note"]
    assert "dino (no --config.paths.dino)" in result["note"]
    assert {*result["scores"]} == {"vae_i"} and abs(result["scores"]["vae_i"]) < 1
    files = kept(folder / "run")
    pictures = {"step_000003.png", "step_000006.png", "test.png"}
    assert {*files} == {"adapter.safetensors", *pictures}
    # Drawn from the same noise, by other adapters.
    assert files["step_000003.png"] != files["step_000006.png"]
    drawn = [*(place / "cache").glob("class_images-*/*.png")]
    assert len(drawn) == 3 and len({x.read_bytes() for x in drawn}) == 3


def test_the_merged_unet_is_one_of_a_pipeline(place, calm, tmp_path):
    one = Run(subject(place))
    adapters = pj.hub.load(calm[0] / "run" / "adapter", one.peft, one.base)
    fresh = one.peft.init(jax.random.key(0), one.base)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), adapters, fresh)
    assert all(jax.tree.leaves(changed))
    unet = one.outline.model
    pj.hub.save_merged(
        tmp_path / "unet", unet, one.peft, one.base, adapters, source=place / "sd/unet"
    )
    model, merged = pj.models.load(tmp_path / "unet")
    rng = np.random.default_rng(0)
    given = [
        rng.normal(size=x.shape).astype(np.float32)
        if x.dtype == np.float32
        else np.full(x.shape, 500, np.int32)
        for x in one.outline.example
    ]
    expected = jax.jit(one.peft.apply)(one.base, adapters, *given)
    found = jax.jit(model.apply)(merged, *given)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    alone = jax.jit(model.apply)(one.base, *given)
    assert np.abs(found - alone).max() > 1e-3


DYING = """
import os, signal, sys
from importlib import import_module
name, what, count = sys.argv[1:4]
module, _, kind = name.partition(":")
holder = import_module(module)
holder = getattr(holder, kind) if kind else holder
real = getattr(holder, what)
calls = 0
def dying(*args, **kwargs):
    global calls
    calls += 1
    if calls > int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
setattr(holder, what, dying)
from experiments.finetune import main
main(sys.argv[4:])
"""
# Before the third class image, the second checkpoint, the picture of the test split.
DEATHS = (
    ("experiments.samples", "write", 2),
    ("peftjax.training.checkpoint:Checkpoints", "save", 1),
    ("experiments.samples", "write", 2),
)


def test_a_run_that_is_killed_anywhere_ends_with_the_same_bits(place, calm, tmp_path):
    given = ROOT / "configs/diffusion/sd15_dreambooth.py"
    config = subject(place, **{"paths.cache": str(tmp_path / "cache")})
    settings = {**SMALL, "data.prior.images": 3, "data.samples": 1, "train.epochs": 2}
    settings |= {f"paths.{n}": config.paths[n] for n in ("model", "data", "cache")}
    settings |= {f"data.{n}": json.dumps(PROMPTS) for n in ("prompts", "shown")}
    command = [f"--config={given}:task=cat", f"--workdir={tmp_path / 'run'}"]
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    for module, what, count in DEATHS:
        began = (tmp_path / "run" / "settings.json").exists()
        more = ["--resume"] if began else []
        dying = [sys.executable, "-c", DYING, module, what, str(count)]
        done = subprocess.run([*dying, *command, *more], cwd=ROOT, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not (tmp_path / "run" / "result.json").exists()
    finetune.main([*command, "--resume"])
    assert kept(tmp_path / "run") == kept(calm[0] / "run")
    drawn = [sorted(x.glob("cache/class_images-*/*.png")) for x in (tmp_path, place)]
    assert [x.read_bytes() for x in drawn[0]] == [x.read_bytes() for x in drawn[1]]


def test_drawing_from_a_signal(place, tmp_path):
    config = control(place)
    result = finetune.run(config, tmp_path / "run")
    assert result["status"] == "finished" and {*result["scores"]} == {"vae_i"}
    assert "mIoU, mAcc and aAcc of segments" in result["note"]
    one = Run(config)
    adapters = pj.hub.load(tmp_path / "run" / "adapter", one.peft, one.base)
    trained = adapters["signal/conv_out/kernel"]["value"]
    assert np.abs(trained).max() > 0
    assert "unet/down_blocks_0/attentions_0/transformer_blocks_0/ff/proj/kernel" in (
        adapters
    )
    merged = one.peft.merge(one.base, adapters)["params"]["unet"]
    unet = pj.models.UNet2DConditionModel(one.outline.model.config)
    pj.models.save(tmp_path / "unet", unet, {"params": merged})
    same_tree(pj.models.load(tmp_path / "unet")[1], {"params": merged})
    assert (tmp_path / "run" / "samples" / "test.png").exists()


def test_scores_of_clip_and_dino_where_they_are_given(place, monkeypatch):
    weights = {"paths.clip": str(MODELS / "clip"), "paths.dino": str(MODELS / "vit")}
    config = subject(place, **weights)
    monkeypatch.setattr(
        likeness, "load_tokenizer", lambda _: latents.loaded(config).tokenizer
    )
    monkeypatch.setattr(likeness._Clip, "texts", lambda self, prompts: texts)
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(2, 20))
    real = rng.integers(0, 256, (3, 20, 20, 3)).astype(np.uint8)
    labels = np.array([1, 0, 1])
    found = likeness.scores(
        config, lambda: real, lambda: real, PROMPTS, labels, paired=False
    )
    clip = likeness._clip(str(MODELS / "clip"))
    images = clip.images(real)
    expected = likeness.cosines(images, texts)[np.arange(3), labels].mean()
    assert found["clip_t"] == pytest.approx(expected)
    assert found["clip_i"] == pytest.approx(likeness.cosines(images, images).mean())
    features = likeness._dino(str(MODELS / "vit"))(real)
    assert found["dino"] == pytest.approx(likeness.cosines(features, features).mean())
    own = np.arange(3, dtype=np.int32)
    same = likeness.scores(
        subject(place, **{"paths.dino": weights["paths.dino"]}),
        *(lambda: real, lambda: real),
        *(PROMPTS, own, True),
    )
    assert same == {"dino": pytest.approx(1.0)}
    assert likeness.lacking(config) == "" and likeness.metric(config) == "clip_i"


def test_the_loss_weighs_what_preserves_the_prior():
    """By hand: noise that the network predicts off by one, and by two."""
    schedule = NoiseSchedule()
    moments = np.zeros((2, 2, 4, 4, 8), np.float32)
    batch = {"moments": moments, "context": np.zeros((2, 2, 3, 8), np.float32)}
    asked = []

    def apply(x, t, context):
        asked.append((x.shape, context.shape))
        # Latents are 0, so that x_t is the noise times its level.
        level = np.sqrt(1 - schedule.alphas_cumprod).astype(np.float32)[t]
        noise = x / level[:, None, None, None]
        return noise + np.array([1, 2, 1, 2], np.float32)[:, None, None, None]

    loss = latents.loss_of(schedule, (1.0, 0.5))(apply, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, [1 + 0.5 * 4] * 2, rtol=1e-4)
    assert asked == [((4, 4, 4, 4), (4, 3, 8))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.size": 17}, "data.size=17: expected a multiple of 2.*nearest is 16"),
        ({"data.size": 0}, "data.size=0: .*nearest is 2"),
        ({"paths.data": "nowhere"}, "nowhere/cat: no such folder"),
        ({"data.prompt": "a " * 40}, "at most 24 tokens.*found 42; shorten"),
    ],
)
def test_settings_that_do_not_fit_are_refused(place, change, message):
    with pytest.raises((UnfitSettings, UnreadableData, MissingData), match=message):
        Run(subject(place, **change))


def test_images_and_signals_that_do_not_fit_are_refused(place, tmp_path):
    folder = make_photographs(tmp_path / "segm" / "a", 2).parent
    (folder / "small.png").write_bytes(png(np.zeros((4, 5, 3), np.uint8)))
    good = {"image": "a/0.png", "signal": "a/1.png", "prompt": "cat"}
    refused, one = (UnreadableData, DataError, MissingData), {"train.batch": 1}
    for change, message in (
        ({"signal": "small.png"}, "small.png: expected the size of.*30x20, found 5x4"),
        ({"signal": "../sd"}, "expected a path inside"),
        ({"image": "a/9.png"}, "no such file"),
        ({"prompt": 3}, "expected texts"),
    ):
        for part in ("train", "test"):
            line = {**good, **change}
            (folder / f"{part}.jsonl").write_text(json.dumps(line))
        with pytest.raises(refused, match=message):
            config = control(place, **one, **{"paths.data": str(tmp_path)})
            Run(config).data.train["moments"][np.arange(1)]
    for text in ("{", "[]", '{"image": 1}'):
        (folder / "train.jsonl").write_text(text)
        with pytest.raises(UnreadableData, match="line 1: expected an object"):
            Run(control(place, **one, **{"paths.data": str(tmp_path)}))


@pytest.mark.parametrize("name", ["sd15_dreambooth", "sd15_control"])
def test_every_method_builds_for_stable_diffusion(name):
    module = {"sd15_dreambooth": sd15_dreambooth, "sd15_control": sd15_control}[name]
    counts = {"hra0": (696_192, 895_488), "lora": (797_184, 1_246_464)}
    signal_encoder = 1_086_480
    for method, expected in counts.items():
        config = module.config(method=method)
        outline = tasks.family(config).outline(config)
        peft = pj.adapt(
            outline.model.apply,
            outline.abstract(),
            *outline.example,
            rules=dict(config.rules),
            strict=True,
        )
        more = signal_encoder if name == "sd15_control" else 0
        assert sum(peft.trainable.values()) == expected[more > 0] + more
