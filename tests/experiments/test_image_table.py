"""The image table: what is trained on, chosen on, tested on, and never read."""

from typing import Any

import jax
import numpy as np
import pytest

import peftjax as pj

pytest.importorskip("tensorflow_datasets", reason="needs peftjax[data]")

from configs.vtab.vision_small import METHODS, TASKS, get_config
from experiments import finetune, sweep
from experiments.arguments import UnknownName
from experiments.programs import ProgramCache
from experiments.run import Run
from experiments.tasks import from_scratch
from experiments.tasks import images as family
from peftjax.data import image_files, images
from peftjax.models.files import CheckpointError
from peftjax.parallel.mesh import make_mesh

pytestmark = pytest.mark.slow

SIZES = {"train": 800, "val": 200, "test": 30}
CLASSES = {"caltech101": 4, "cifar10": 3, "mnist": 3, "eurosat5": 2}
SMALL = {
    "model.image_size": 8,
    "model.patch_size": 4,
    "model.width": 8,
    "model.depth": 1,
    "model.num_heads": 2,
    "model.mlp_dim": 16,
    "pretrain.epochs": 1,
    "pretrain.batch": 400,
    "train.epochs": 1,
    "train.batch": 200,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The four tasks, 8x8 pixels each."""
    place = tmp_path_factory.mktemp("vision")
    draw = np.random.default_rng(0)
    for task, (name, *_) in TASKS.items():
        content: dict[str, Any] = {
            "class_names": np.array([f"c{i}" for i in range(CLASSES[task])])
        }
        for split, size in SIZES.items():
            pixels = draw.integers(0, 256, (size, 8, 8, 3), np.uint8)
            labels = draw.integers(0, CLASSES[task], size).astype(np.int32)
            content |= {f"{split}_images": pixels, f"{split}_labels": labels}
        np.savez(place / f"{name}.npz", **content)
        image_files.prepare_npz(place / f"{name}.npz", place)
    return place


@pytest.fixture
def opened(monkeypatch):
    """The splits that were opened; nothing is read from an earlier test's memory."""
    found = []
    load = images.load

    def watched(name, split, *args, **kwargs):
        found.append((name, split))
        return load(name, split, *args, **kwargs)

    monkeypatch.setattr(family.images, "load", watched)
    # eight fake devices are slow
    monkeypatch.setattr(from_scratch, "mesh_of", lambda config: make_mesh(data=1))
    return found


def configured(folder, arg="task=cifar10,method=linear", **changes) -> Any:
    config: Any = get_config(arg)
    config.update_from_flattened_dict(SMALL | changes)
    config.model.num_classes = CLASSES[config.task]
    config.pretrain.classes = sum(CLASSES[task] for task in config.pretrain.tasks)
    config.paths.data, config.paths.cache = str(folder), str(folder / "cache")
    return config


def test_choices_are_made_on_800_and_200_images(folder, opened):
    data = family.data(configured(folder), choose=True)
    assert opened == [("cifar10_1k", "train"), ("cifar10_1k", "val")]
    assert data.validation is not None and data.test is None
    assert (len(data.train["label"]), len(data.validation["label"])) == (800, 200)
    assert [found["examples"] for found in data.fingerprints] == [800, 200]


def test_the_best_epoch_is_chosen_on_the_200(folder, opened):
    config = configured(folder, selection="best_on_validation")
    data = family.data(config, choose=False)
    splits = (data.train, data.validation, data.test)
    assert [len(x["label"]) for x in splits if x] == [800, 200, 30]
    assert family.outline(config).examples == 800


def test_a_run_trains_on_1000_and_tests_once(folder, opened, tmp_path, monkeypatch):
    config, scored = configured(folder), []
    count = Run.score

    def score(self, adapters, split, collections=None):
        scored.append(split)
        return count(self, adapters, split, collections)

    monkeypatch.setattr(Run, "score", score)
    cache = ProgramCache(make_mesh(data=1))
    result = finetune.run(config, tmp_path, cache=cache)
    assert result["status"] == "finished" and result["selected_step"] == 1000 // 200
    assert [len(split["label"]) for split in scored] == [30]
    found = {(one["dataset"], one["split"]): one for one in result["data"]}
    assert [one["examples"] for one in found.values()] == [800, 200, 30]
    train, val = (
        images.load("cifar10_1k", part, folder, size=8).labels
        for part in ("train", "val")
    )
    data = family.data(config, choose=False)
    np.testing.assert_array_equal(data.train["label"], [*train, *val])
    assert data.validation is None and len(data.train["image"]) == 1000


def test_a_base_sees_neither_its_task_nor_a_test_split(folder, opened, tmp_path):
    config = configured(folder, "task=eurosat5,method=lora")
    config.paths.cache = str(tmp_path)
    outline = family.outline(config)
    variables = family.base(config, outline)
    others = [TASKS[task][0] for task in TASKS if task != "eurosat5"]
    assert opened == [(name, part) for name in others for part in ("train", "val")]
    expected = jax.tree.map(lambda x: x.shape, outline.abstract())
    assert jax.tree.map(lambda x: x.shape, variables) == expected
    assert not any(map(np.any, jax.tree.leaves(variables["params"]["head"])))
    opened.clear()
    again = family.base(config, outline)
    assert opened == [] and len(list(tmp_path.glob("*.safetensors"))) == 1
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_pretraining_labels_are_those_of_each_task_in_turn(folder, opened):
    config = configured(folder, "task=eurosat5,method=lora")
    train, validation = family._others(config)
    assert (len(train["label"]), len(validation["label"])) == (2400, 600)
    starts = np.cumsum([0, *(CLASSES[task] for task in config.pretrain.tasks)])
    for i, labels in enumerate(np.split(train["label"], 3)):
        assert (labels.min(), labels.max()) == (starts[i], starts[i + 1] - 1)
    assert (
        starts[-1]
        == family.ViT(**config.model)
        .clone(num_classes=config.pretrain.classes)
        .num_classes
    )


def test_the_bases_of_tasks_with_equal_heads_are_different_files(folder, opened):
    keys = [
        from_scratch.digest(config.model, config.pretrain)
        for config in (configured(folder, f"task={x}") for x in ("cifar10", "mnist"))
    ]
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tasks", ("cifar10", "mnist"), "cifar10 is adapted to"),
        ("classes", 8, "expected 9, the sum over caltech101, mnist, eurosat5; found 8"),
    ],
)
def test_a_wrong_pretraining_is_refused(folder, opened, tmp_path, key, value, message):
    config = configured(folder)
    config.pretrain[key], config.paths.cache = value, str(tmp_path)
    with pytest.raises(ValueError, match=message):
        family.base(config, family.outline(config))
    assert not list(tmp_path.glob("*.safetensors"))


def test_weights_of_another_model_are_refused(folder, opened, tmp_path):
    config = configured(folder, **{"model.pooling": "cls"})
    outline = family.outline(config)
    other = outline.model.clone(depth=2)
    init = jax.jit(other.init)
    variables = init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    pj.models.save(tmp_path / "vit", other, variables)
    config.paths.model = str(tmp_path / "vit")
    with pytest.raises(CheckpointError, match="not the model of vision_small"):
        family.base(config, outline)


def test_no_weights_and_no_pretraining_are_refused(folder, opened):
    config = configured(folder)
    outline = family.outline(config)
    del config.pretrain
    with pytest.raises(CheckpointError, match=r"give --config\.paths\.model"):
        family.base(config, outline)


def test_a_sweep_scores_the_200_images(folder, opened, monkeypatch):
    config = configured(folder)
    family.base(config, family.outline(config))
    opened.clear()
    value = sweep.score(config, ProgramCache(make_mesh(data=1)))
    assert 0 < value < 1 and (200 * value) % 1 == pytest.approx(0, abs=1e-4)
    assert all(split != "test" for _, split in opened)


def test_crops_keep_the_pixels_of_their_image():
    row = np.arange(12)
    pixels = np.stack([row[:, None, None] * 12 + row[:, None]] * 64).astype(np.uint8)
    found = np.asarray(family.augment(jax.numpy.asarray(pixels), jax.random.key(0)))
    assert found.shape == pixels.shape and found.dtype == np.uint8
    steps = np.diff(found.astype(int)[:, family.CROP : -family.CROP, 6, 0], axis=1)
    assert set(np.unique(steps)) <= {12, -12}
    across = np.sign(np.diff(found.astype(int)[:, 6, 5:7, 0], axis=1))
    assert 10 < (across > 0).sum() < 54  # about half are mirrored
    assert len({image.tobytes() for image in found}) > 32


def test_the_table_is_in_vtabs_format():
    config: Any = get_config("task=mnist,method=hra_inf,seed=2")
    assert (config.task, config.method, config.seed) == ("mnist", "hra_inf", 2)
    assert set(config.table.groups) == set(TASKS)
    assert set(config.table.groups.values()) == {"natural", "specialized"}
    assert config.table.methods == tuple(METHODS)
    for task in TASKS:
        other: Any = get_config(f"task={task}")
        others = other.pretrain.tasks
        assert task not in others and len(others) == len(TASKS) - 1
    for name in METHODS:
        other = get_config(f"method={name}")
        assert other.optim.lr in config.grid
    with pytest.raises(UnknownName, match="eurosat5"):
        get_config("task=eurosat")


@pytest.mark.realdata
def test_the_files_are_those_of_the_config(shared_data):
    for task, (name, classes, _) in TASKS.items():
        content = np.load(shared_data / "vision" / f"{name}.npz", allow_pickle=False)
        assert len(content["class_names"]) == classes, task
        assert len(content["train_labels"]) == 800 and len(content["val_labels"]) == 200
