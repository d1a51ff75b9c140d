"""Data of one's own: a configuration of a few lines, run end to end."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import defaults
from experiments import finetune
from experiments.finetune import main
from experiments.programs import ProgramCache
from experiments.table.__main__ import main as table
from peftjax.parallel.mesh import make_mesh
from tests.helpers.compilations import compilations

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "configs" / "examples"
MODELS = ROOT / "tests" / "files" / "models"
WORDS = "good bad fine poor great awful nice ugly".split()


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Photographs as a folder and as arrays, and reviews, all easy to tell apart."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    pixels = draw.integers(0, 60, (40, 12, 12, 3), np.uint8)
    labels = np.arange(40) % 2
    pixels[labels == 1] += 150
    for number, (image, label) in enumerate(zip(pixels, labels)):
        file = folder / "photos" / ("dark", "light")[label] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    np.savez(folder / "arrays.npz", images=pixels, labels=labels)
    with (folder / "reviews.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for number in range(40):
            words = draw.choice(WORDS[number % 2 :: 2], 4)
            writer.writerow([" ".join(words), ("good", "bad")[number % 2]])
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The checkpoint of a small BERT and a tokenizer of its vocabulary."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs peftjax[text]")
    folder = tmp_path_factory.mktemp("encoder")
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((MODELS / "bert" / name).read_bytes())
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    ids = {word: number for number, word in enumerate(vocabulary)}
    model = tokenizers.models.WordLevel(ids, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def arguments(name, data, model, cache, **changes):
    settings = {
        **{"paths.data": data, "paths.model": model, "paths.cache": cache},
        **{"train.epochs": 6, "train.batch": 8, "train.eval_epochs": 3},
        **{"optim.lr": 0.01, "optim.warmup": 0},
        **changes,
    }
    config = f"--config={EXAMPLES / name}"
    return [config, *(f"--config.{key}={value}" for key, value in settings.items())]


def text(data, encoder, cache, **changes):
    short = {"data.max_length": 16, "data.buckets": "(8, 16)", **changes}
    return arguments("own_text.py", data, encoder, cache, **short)


def finished(folder):
    found = json.loads((folder / "result.json").read_text())
    assert found["status"] == "finished"
    assert [x["examples"] for x in found["data"]] == [32, 4, 4]
    assert (folder / "adapter.safetensors").exists()
    return found["scores"]["accuracy"]


@pytest.mark.parametrize("name", ["own_images.py", "own_text.py"])
def test_a_configuration_of_ones_own_is_short(name):
    assert len((EXAMPLES / name).read_text().splitlines()) <= 12


def test_images_of_ones_own_are_trained_on(data, tmp_path):
    given = arguments("own_images.py", data, MODELS / "vit", tmp_path)
    main([*given, "--workdir", str(tmp_path / "folder")])
    assert finished(tmp_path / "folder") == 1.0
    given[0] += ":task=arrays"
    main([*given, "--workdir", str(tmp_path / "arrays")])
    assert finished(tmp_path / "arrays") == 1.0


def test_texts_of_ones_own_are_trained_on(data, encoder, tmp_path):
    given = text(data, encoder, tmp_path)
    main([*given, "--workdir", str(tmp_path / "run")])
    assert finished(tmp_path / "run") == 1.0


def test_a_step_on_texts_is_measured_against_the_bound(data, encoder, tmp_path):
    file = tmp_path / "own.py"
    whole = (EXAMPLES / "own_text.py").read_text()
    file.write_text(whole.replace("model=", "measure=True, model="))
    given = text(data, encoder, tmp_path, **{"train.epochs": 1, "train.eval_epochs": 1})
    given[0] = f"--config={file}"
    main([*given, "--workdir", str(tmp_path / "run")])
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert found["step_over_bound"] > 0 and 0 < found["merge_difference"] < 1e-3


def test_a_table_of_ones_own_is_filled(data, encoder, tmp_path, capsys):
    given = text(data, encoder, tmp_path, **{"train.epochs": 1, "train.eval_epochs": 1})
    options = ["--methods", "linear,lora", "--seeds", "1", "--workdir"]
    table([*given, *options, str(tmp_path / "table")])
    assert "reviews, lora, seed 0: accuracy" in capsys.readouterr().out
    assert "reviews" in (tmp_path / "table" / "table.md").read_text()
    table([*given, "--dry-run", "--methods", "lora"])
    assert "1 runs build" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("own_images.py", {"paths.data": "nowhere"}, "nowhere/photos: no such folder"),
        ("own_images.py", {"paths.model": ""}, "own_images: no weights; give"),
        ("own_images.py", {"paths.model": "nowhere"}, "nowhere"),
        ("own_images.py", {"train.batch": 33}, "at most the 32 training examples"),
        ("own_text.py", {"data.label": "lable"}, "reviews.csv, row 1: no column 'labl"),
        ("own_text.py", {"data.text": "sentence"}, "no column 'sentence'; there are"),
    ],
)
def test_what_is_wrong_is_one_line(data, encoder, tmp_path, name, change, told):
    model = encoder if name == "own_text.py" else MODELS / "vit"
    given = arguments(name, data, model, tmp_path, **change)
    with pytest.raises(SystemExit) as caught:
        main([*given, "--workdir", str(tmp_path / "run")])
    message = str(caught.value.code)
    assert told in message and len(message.splitlines()) == 1


def test_too_few_examples_are_told(data, encoder, tmp_path):
    folder = tmp_path / "photos" / "a"
    folder.mkdir(parents=True)
    Image.new("L", (4, 4)).save(folder / "1.png")
    (tmp_path / "photos" / "b").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "photos" / "b" / "1.png")
    (tmp_path / "reviews.jsonl").write_text(
        '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n'
    )
    for given in (
        arguments("own_images.py", tmp_path, MODELS / "vit", tmp_path),
        text(tmp_path, encoder, tmp_path),
    ):
        with pytest.raises(SystemExit, match=r"class '\w': expected at least 3 exam"):
            main([*given, "--workdir", str(tmp_path / "run")])


def test_a_damaged_image_is_named(data, tmp_path):
    for number in range(20):
        for kind in ("a", "b"):
            file = tmp_path / "photos" / kind / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), number).save(file)
    file.write_bytes(file.read_bytes()[:40])
    given = arguments("own_images.py", tmp_path, MODELS / "vit", tmp_path)
    with pytest.raises(SystemExit, match=r"own_images, photos: .*19\.png: not a whole"):
        main([*given, "--workdir", str(tmp_path / "run")])


def test_a_further_seed_on_texts_compiles_nothing(data, encoder, tmp_path):
    """The head, too, is drawn by one program for all seeds."""
    options = {"train": {"epochs": 1, "batch": 8}, "paths": {"data": str(data)}}
    short = {"max_length": 16, "buckets": (16,)}
    cache = ProgramCache(make_mesh(data=1))
    for seed in (0, 1):
        given = defaults.own_text(
            "reviews", "linear", seed, str(encoder), data=short, **options
        )
        with compilations() as found:
            finetune.run(given, tmp_path / str(seed), cache=cache)
    assert found == []
