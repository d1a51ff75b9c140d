"""GLoRA's few shots and domain shift: trained once, tested on sets of some classes."""

import json
from pathlib import Path

import numpy as np
import pytest

from configs import imagenet_shift
from configs.fewshot import vit_b16
from experiments import finetune, outlook, report
from experiments.published import Numbers
from experiments.report.rows import table
from experiments.report.runs import read
from experiments.run import Run
from experiments.tasks import shots
from experiments.tasks.task import UnreadableData
from peftjax.data.class_names import places
from peftjax.data.errors import DataError
from peftjax.data.images import png
from tests.helpers.report_case import failed, fill, result

MODEL = Path(__file__).resolve().parents[1] / "files" / "models" / "vit"
CLASSES = ("n01", "n02", "n03", "n04")
PIXELS = {name: 60 * place for place, name in enumerate(CLASSES)}


def write(folder, classes, count, draw):
    for name, pixel in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = pixel + draw.integers(0, 50, (20, 26, 3))
            (folder / name / f"{number}.png").write_bytes(png(image.astype(np.uint8)))


@pytest.fixture
def config(tmp_path):
    """A shift from four classes to the same by number, and to two of them."""
    draw, data = np.random.default_rng(0), tmp_path / "data"
    write(data / "imagenet" / "train", PIXELS, 5, draw)
    write(data / "imagenet" / "test", PIXELS, 3, draw)
    numbers = {str(place): PIXELS[name] for place, name in enumerate(CLASSES)}
    write(data / "imagenet_v2", numbers, 2, draw)
    some = {name: PIXELS[name] for name in ("n02", "n04")}
    write(data / "imagenet_a", some, 2, draw)
    made = imagenet_shift.config(method="linear")
    own = json.loads((MODEL / "config.json").read_text())
    made.model.update(
        image_size=own["image_size"],
        patch_size=own["patch_size"],
        width=own["hidden_size"],
        depth=own["num_hidden_layers"],
        num_heads=own["num_attention_heads"],
        mlp_dim=own["intermediate_size"],
        num_classes=4,
        drop_path=0.0,
    )
    made.data.update(
        size=own["image_size"], shots=4, tested=("imagenet_v2", "imagenet_a")
    )
    made.train.update(epochs=30, batch=8, eval_epochs=30)
    made.optim.update(lr=0.03, warmup=1, period=30)
    made.paths.update(data=str(data), model=str(MODEL))
    return made


@pytest.mark.slow
def test_a_run_is_tested_on_each_set_among_its_classes(config, tmp_path):
    found = finetune.run(config, tmp_path / "run")
    assert found["examples"] == {"train": 16, "reported": 12}
    scores = found["scores"]
    assert scores.keys() == {"accuracy", "imagenet_v2", "imagenet_a"}
    one = Run(config)
    with np.errstate(all="ignore"):
        whole = shots.elsewhere(
            one, one.peft.init(one.state().key, one.base), "imagenet_a", CLASSES
        )
    # A head of zeros answers with the first that can be answered, n02: one in two.
    assert whole == 0.5
    assert scores["imagenet_a"] >= 0.5


def test_sets_that_do_not_fit_are_told_before_training(config):
    place = Path(config.paths.data)
    (place / "imagenet_a" / "n04").rename(place / "imagenet_a" / "n05")
    with pytest.raises(UnreadableData, match=r"imagenet_a: the class 'n05' is none of"):
        Run(config)
    config.model.num_classes = 1000
    with pytest.raises(DataError, match="expected 1000 classes, found 4"):
        shots.data(config, False)
    config.paths.data = "nowhere"
    assert shots.count(config) is None


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (["cat", "dgo"], r"'dgo' is none of 3 known classes.*did you mean 'dog'\?"),
        (["cat", "CAT"], "'cat' and 'CAT' are both the class 'cat'"),
        (["0", "3"], "'3' is none of 3"),
        (["1", "01"], "both the class 'dog'"),
    ],
)
def test_names_that_are_no_classes(found, told):
    with pytest.raises(DataError, match=told):
        places("here", found, ("cat", "dog", "fish"))


def test_numbers_are_places_unless_classes_are_called_so():
    assert places("x", ["10", "2"], [f"n{i}" for i in range(11)]).tolist() == [10, 2]
    assert places("x", ["1", "0"], ["1", "0"]).tolist() == [0, 1]


@pytest.mark.slow
def test_the_dry_run_reads_nothing():
    plans = outlook.Plans()
    shift = outlook.prospect(imagenet_shift.config(method="linear"), plans)
    assert shift.trainable == 1000 * 769 and shift.steps == 100 * 250
    found = outlook.prospect(vit_b16.config("oxford_pets-1", "linear"), plans)
    assert found.trainable == 37 * 769 and found.steps == 100 and not found.counted


def test_a_batch_is_one_that_the_shots_fill():
    batches = {
        (task, method): vit_b16.config(task, method).train.batch
        for task in ("oxford_pets-1", "oxford_pets-2")
        for method in ("lora", "glora_search")
    }
    assert [*batches.values()] == [37, 37, 64, 37]  # one of two is searched on


def test_the_published_numbers_of_each_column():
    numbers = Numbers.of(vit_b16.config().table)
    one = numbers.score("glora_search", "food101-16")
    assert one is not None and one.metric == "top1@16shot"
    assert numbers.score("lora", "oxford_pets-1") is not None
    numbers = Numbers.of(imagenet_shift.config().table)
    columns = ("imagenet", *imagenet_shift.TESTED)
    values = [numbers.score("glora_search", x) for x in columns]
    assert [x and x.value for x in values] == [78.3, 67.5, 30.6, 13.3, 31.0]


def test_a_run_is_a_column_for_each_set(tmp_path, monkeypatch):
    one = result("imagenet", "lora", 0, 0.7)
    one["scores"] = {"accuracy": 0.7, "imagenet_v2": 0.6, "imagenet_a": 0.1}
    runs = [one, failed("imagenet", "hra", 0)]
    settings = {"examined": ["imagenet_v2", "imagenet_a"], "all_tasks": ["imagenet"]}
    place = fill(tmp_path, runs, **settings)
    plan, found = read(place)
    made = table("a_table", found, plan["table"])
    assert made.tasks == ("imagenet", "imagenet_v2", "imagenet_a")
    lora, hra = made.rows
    means = [lora.scores[x].mean for x in (*made.tasks, "average")]
    np.testing.assert_allclose(means, [70, 60, 10, 140 / 3])
    assert [hra.scores[x].failed for x in made.tasks] == [1, 1, 1]
    monkeypatch.setattr(report.plot, "png", lambda *_: b"no picture")
    report.write(place)
    assert "| lora | 70.0 | 60.0 | 10.0 | 46.7 |" in (place / "table.md").read_text()
