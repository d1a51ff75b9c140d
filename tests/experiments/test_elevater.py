"""ELEVATER: its sets, its search, and runs of a small CLIP from shots to the table."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from configs.elevater import clip_vit_b32
from experiments import decays, finetune, kept, outlook, tasks
from experiments.decay_search import main as search
from experiments.documents import DamagedFile
from experiments.programs import ProgramCache
from experiments.report.rows import table
from experiments.report.runs import read
from experiments.report.scores import efficiency
from experiments.run import Run
from experiments.table.__main__ import main as write_table
from experiments.tasks import elevater
from experiments.tasks.task import UnreadableData
from experiments.workdir import RunFolder
from peftjax.data import multi_label
from peftjax.models.files import CheckpointError
from tests.helpers.model_cases import MODELS
from tests.helpers.report_case import fill, result

SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "image_size",
    "patch_size",
    "hidden_act",
)


def test_the_sets_have_the_published_classes_and_prompts():
    found = elevater.sets()
    assert len(found) == 20 and sum(len(x.classes) for x in found.values()) == 1151
    for name, one in found.items():
        assert len(set(one.classes)) == len(one.classes), name
        assert all(text.count("{}") == 1 for text in one.templates), name
        assert one.metric in elevater.METRICS
    assert [name for name, x in found.items() if x.view == "resize"] == [
        "kitti-distance"
    ]


def test_each_set_has_its_metric():
    labels, logits = np.array([0, 0, 0, 1]), np.array([[2, 1], [2, 1], [0, 1], [0, 3]])
    for metric, value in {"accuracy": 0.75, "mean-per-class": 5 / 6}.items():
        assert elevater.METRICS[metric](labels, logits) == pytest.approx(value)
    assert elevater.METRICS["roc_auc"](labels, logits) == 1
    several = elevater.METRICS[elevater.SEVERAL]
    assert several(np.eye(3)[[0, 1, 2, 2]], 5 * np.eye(3)[[0, 1, 2, 2]]) == 1


def test_the_search_is_coarse_and_then_among_neighbours():
    tried = []

    def score(rate, decay):
        tried.append((rate, decay))
        return -abs(math.log10(decay) - 1.3) - abs(math.log10(rate) + 3)

    rate, decay, _ = decays.search(score)
    assert rate == 1e-3 and abs(math.log10(decay) - 1.3) <= 1 / 16
    coarse = [found for r, found in tried if r == 1e-6][:7]
    assert coarse == [decays.DECAYS[i] for i in range(0, 97, 16)]
    assert len(tried) == 6 * (7 + 8) and len(set(tried)) > 6 * 11
    worst = decays.search(lambda *_: float("nan"))
    assert worst == (1e-6, decays.DECAYS[0], -math.inf)


def test_the_counts_of_the_authors_code_and_why_the_printed_one_differs():
    configs = [clip_vit_b32.config(task) for task in ("cifar10", "dtd")]
    plans = outlook.Plans()
    runs = [outlook.prospect(config, plans) for config in configs]
    (found,) = outlook.compare(runs, configs[0].table)
    assert found.without_head == (147_504, 147_504) and found.published == "0.20"
    assert found.verdict.startswith("differs: the released code has ranks 2 and 2")
    assert [run.trainable - 147_504 for run in runs] == [10 * 513, 47 * 513]
    assert [run.steps for run in runs] == [50, 50 * 3]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small CLIP with a tokenizer, and the settings that say so."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs peftjax[text]")
    folder = tmp_path_factory.mktemp("clip")
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((MODELS / "clip_gelu" / name).read_bytes())
    words = "a positive negative review of movie photo cat dog person".split()
    ids = {word: 3 + i for i, word in enumerate(words)}
    ids |= {"<unk>": 2, "<|startoftext|>": 44, "<|endoftext|>": 45}
    model = tokenizers.models.WordLevel(ids, unk_token="<unk>")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", 44), ("<|endoftext|>", 45)],
    )
    made.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    return folder, config["vision_config"], config["projection_dim"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Reviews in two colours, and images of several classes."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    arrays = {"class_names": np.array(["Positive", "negative"])}
    for part, count in (("train", 24), ("test", 12)):
        labels = np.arange(count) % 2
        pixels = draw.integers(0, 60, (count, 20, 30, 3)).astype(np.uint8)
        pixels[labels == 1] += 150
        arrays |= {f"{part}_images": pixels, f"{part}_labels": labels}
    np.savez(folder / "rendered-sst2.npz", **arrays)
    arrays = {}
    for part, count in (("train", 120), ("test", 40)):
        arrays[f"{part}_images"] = draw.integers(0, 255, (count, 8, 8, 3), np.uint8)
        arrays[f"{part}_labels"] = np.eye(20, dtype=int)[np.arange(count) % 20]
        arrays[f"{part}_labels"][::3, 14] = 1
    np.savez(folder / "voc2007classification.npz", **arrays)
    return folder


@pytest.fixture
def small(clip, data, tmp_path):
    place, vision, dim = clip

    def of(task="rendered-sst2", epochs=6, **options):
        config = clip_vit_b32.config(task, **options)
        for key in config.model.vision:
            config.model.vision[key] = vision.get(key, config.model.vision[key])
        config.model.projection_dim = dim
        config.train.epochs = config.train.eval_epochs = epochs
        if options.get("selection", "last") != "last":
            config.train.eval_epochs = 1
        config.paths.update(data=str(data), model=str(place), cache=str(tmp_path))
        config.optim.lr, config.parallel.data = 0.01, 1
        return config

    return of


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["last", "best_on_test"])
def test_a_run_moves_its_statistics_and_keeps_them(small, tmp_path, selection):
    config, cache = small(selection=selection), ProgramCache()
    config.look = True
    config.measure = selection == "last"
    found = finetune.run(config, tmp_path / "run", cache=cache)
    assert found["status"] == "finished" and found["metric"] == "accuracy"
    assert found["examples"] == {"train": 10, "reported": 12}
    one, folder = Run(config, cache), RunFolder(tmp_path / "run")
    chosen = kept.load(one, folder, "adapter")
    moved = chosen.collections["batch_stats"]["norm"]["mean"]
    assert np.abs(moved - one.base["batch_stats"]["norm"]["mean"]).max() > 1e-3
    again = one.score(chosen.adapters, one.data.test, chosen.collections)
    assert again == found["scores"]
    with_theirs = one.outputs(chosen.adapters, one.data.test, chosen.collections)
    without = one.outputs(chosen.adapters, one.data.test)
    assert np.abs(with_theirs - without).max() > 1e-3
    lengths = found["token_lengths"]
    assert len(lengths["before"]) == config.model.vision.num_hidden_layers
    with np.load(tmp_path / "run" / "mistakes.npz") as left:
        assert {*left["labels"]} <= {"negative", "positive"}
    assert np.abs(np.subtract(*lengths.values())).max() > 1e-6  # Hydra is in each layer
    other = config.copy_and_resolve_references()
    other.optim.weight_decay = 1.0
    assert Run(other, cache).programs is one.programs
    if selection == "last":
        assert found["merge_difference"] < 1e-4 and found["step_over_bound"] > 0
        resumed = finetune.run(config, tmp_path / "run", resume=True)
        assert resumed["scores"] == found["scores"]


def test_labels_are_in_the_order_of_the_prompts(small, data):
    """The file's first class is positive, the prompts' is negative; light is 1."""
    assert elevater.sets()["rendered-sst2"].classes == ("negative", "positive")
    found = elevater.data(small(), False)
    light = np.asarray(found.train["image"]).mean((1, 2, 3)) > 100
    np.testing.assert_array_equal(found.train["label"], np.where(light, 0, 1))


@pytest.mark.slow
def test_images_of_several_classes(small, tmp_path):
    config = small("voc2007classification", epochs=2, method="linear")
    found = finetune.run(config, tmp_path / "run")
    assert found["metric"] == "11point_mAP" and 0 < found["scores"]["11point_mAP"] <= 1
    assert found["trainable"] == 20 * (config.model.projection_dim + 1)
    outline = tasks.family(config).outline(config)
    batch = {
        "image": np.zeros((2, 16, 16, 3), np.uint8),
        "label": np.eye(20, dtype="f4")[:2],
    }
    losses, _ = outline.loss(lambda *_, **__: (np.zeros((2, 20)), {}), batch, None)
    np.testing.assert_allclose(losses, math.log(2), rtol=1e-6)


@pytest.mark.slow
def test_what_was_searched_is_what_the_table_runs(small, tmp_path, monkeypatch):
    monkeypatch.setattr(decays, "RATES", (1e-4, 1e-2))
    monkeypatch.setattr(decays, "DISTANCES", (8,))

    def one(task="rendered-sst2", **_):
        return small(task, method="linear")

    options = SimpleNamespace(
        config=SimpleNamespace(config=one),
        methods=["linear"],
        tasks=["rendered-sst2"],
        workdir=tmp_path,
    )
    monkeypatch.setattr("experiments.cli.Parser.read", lambda *_: options)
    search([])
    file = tmp_path / "search.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["lr"] for line in lines} == {1e-4, 1e-2} and len(lines) > 14
    top = max(line["score"] for line in lines)
    lr, decay = decays.best(str(file), "rendered-sst2", "linear")
    assert any(
        (x["lr"], x["weight_decay"], x["score"]) == (lr, decay, top) for x in lines
    )
    config = clip_vit_b32.config("rendered-sst2", "linear", searched=str(file))
    assert (config.optim.lr, config.optim.weight_decay) == (lr, decay)
    before = file.read_text()
    search([])  # nothing is repeated
    assert file.read_text() == before
    with pytest.raises(DamagedFile, match="expected trials of mnist, hydra, found no"):
        decays.best(str(file), "mnist", "hydra")
    with pytest.raises(DamagedFile, match="decay_search makes it"):
        decays.best(str(tmp_path / "none"), "mnist", "hydra")


def test_what_cannot_be_used_is_told(small, data, tmp_path):
    config = small("mnist")
    with np.load(data / "rendered-sst2.npz") as file:
        np.savez(tmp_path / "mnist.npz", **file)
    config.paths.data = str(tmp_path)
    with pytest.raises(UnreadableData, match="'Positive' is none of 10 known classes"):
        Run(config)
    with np.load(data / "rendered-sst2.npz") as file:
        two = {**file, "class_names": np.array(["0", "1"])}
        np.savez(tmp_path / "mnist.npz", **two)
    with pytest.raises(UnreadableData, match="10 classes, found 2; '2' has no images"):
        Run(config)
    assert tasks.family(config).count(small("food101")) is None
    other = small()
    other.model.vision.hidden_size = 8
    with pytest.raises(CheckpointError, match="not the model of elevater"):
        Run(other)


@pytest.mark.slow
@pytest.mark.realdata
def test_the_protocol_on_real_images(clip, shared_data, tmp_path, monkeypatch, capsys):
    """Search, then the table, from the command line; of a CLIP of random weights."""
    monkeypatch.setattr(decays, "RATES", (1e-4, 1e-2))
    monkeypatch.setattr(decays, "DISTANCES", ())
    sets, (place, vision, dim) = ("cifar10", "mnist"), clip
    for name in sets:
        file = shared_data / "vision" / f"{name}_1k.npz"
        (tmp_path / f"{name}.npz").symlink_to(file)
    settings = {f"model.vision.{key}": vision[key] for key in SIZES}
    settings |= {"model.projection_dim": dim, "train.epochs": 5, "parallel.data": 1}
    settings |= {"paths.data": tmp_path, "paths.model": place, "paths.cache": tmp_path}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    chosen = ["--tasks", ",".join(sets), "--methods", "linear,hydra"]
    work = ["--workdir", str(tmp_path / "runs"), *chosen, *flags]
    file = "configs/elevater/clip_vit_b32.py"
    search(["--config", file, *work])
    searched = tmp_path / "runs" / "search.jsonl"
    lines = [json.loads(line) for line in searched.read_text().splitlines()]
    assert len(lines) == 2 * 2 * 2 * 7
    write_table(["--config", f"{file}:searched={searched}", "--seeds", "1", *work])
    told = (tmp_path / "runs" / "table.md").read_text()
    with capsys.disabled():
        print(told)
    for name in sets:
        (result,) = (tmp_path / "runs" / name).glob("hydra-*/seed0/result.json")
        found = json.loads(result.read_text())
        assert found["examples"]["train"] == 50 and found["status"] == "finished"
        rate, decay = decays.best(str(searched), name, "hydra")
        optim = found["config"]["optim"]
        assert (optim["lr"], optim["weight_decay"]) == (rate, decay)
        collections = result.with_name("adapter_collections.safetensors")
        assert collections.is_file()
    assert "[70.95" not in told and "efficiency" in told and "[0.709]" not in told


def test_shots_of_several_classes():
    draw = np.random.default_rng(0)
    labels = (draw.random((200, 6)) < 0.2).astype(int)
    train, held = multi_label.few_shot(labels, "abcdef", 5, seed=2)
    assert not {*train} & {*held} and len({*train, *held}) < 31
    assert (labels[[*train, *held]].sum(0) >= 5).all() and (
        labels[held].sum(0) > 0
    ).all()
    assert (labels[train].sum(0) > 0).all()
    other, _ = multi_label.few_shot(labels, "abcdef", 5, seed=3)
    assert [*train] != [*other]
    with pytest.raises(ValueError, match="class 'b': expected at least 5 .*found 4"):
        multi_label.few_shot(np.eye(6, dtype=int)[[0] * 5 + [1] * 4], "abcdef", 5)


def test_the_table_has_the_efficiency(tmp_path):
    scores = {"cifar10": 0.9, "mnist": 0.7}
    runs = [result(task, "hydra", 0, x) for task, x in scores.items()]
    published = clip_vit_b32.PUBLISHED
    settings = {"published": published, "efficiency": True, "all_tasks": [*scores]}
    plan, found = read(fill(tmp_path, runs, **settings))
    (row,) = table("a_table", found, plan["table"]).rows
    mean = np.mean([run["trainable"] for run in runs])
    assert row.efficiency == f"{efficiency(0.8, mean):.3f} [0.709]"
    plan["table"]["all_tasks"].append("dtd")  # the paper's is of all tasks
    (row,) = table("a_table", found, plan["table"]).rows
    assert row.efficiency == f"{efficiency(0.8, mean):.3f}"
