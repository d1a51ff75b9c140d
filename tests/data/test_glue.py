"""GLUE: read back, tokenised, batched; the same order everywhere."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from peftjax.data import glue, glue_files, source, tokenizer
from peftjax.data.pipeline import eval_batches, train_batches
from tests.helpers.glue_case import rows, write_parquet, write_task, write_tokenizer

pytest.importorskip("tensorflow_datasets", reason="needs peftjax[data]")
pytest.importorskip("pyarrow", reason="needs peftjax[data]")
tokenizers = pytest.importorskip("tokenizers", reason="needs peftjax[text]")

pytestmark = pytest.mark.filterwarnings("ignore:.*published split has")
COUNTS = {"train": 50, "validation": 9, "test": 5}
COLUMNS = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder with MRPC (pairs), STS-B (scores) and CoLA (single), made here."""
    root = tmp_path_factory.mktemp("glue")
    made = {task: write_task(root / "raw", task, COUNTS) for task in ("cola", "mrpc")}
    made["stsb"] = write_task(root / "raw", "stsb", COUNTS)
    for task in made:
        glue_files.prepare(task, root / "raw", root / "data")
    return root / "data", made


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("model"))


def test_tasks_are_those_of_tfds():
    from tensorflow_datasets.text.glue import Glue

    assert len(glue.TASKS) == 9
    for name, task in glue.TASKS.items():
        config = Glue.builder_configs[name]
        assert set(task.text) == set(config.text_features)
        assert task.classes == len(config.label_classes or ())
    assert glue.TASKS["mnli"].validation == (
        "validation_matched",
        "validation_mismatched",
    )


@pytest.mark.parametrize("task", ["cola", "mrpc", "stsb"])
@pytest.mark.parametrize("split", COUNTS)
def test_reads_back_what_was_written(folder, task, split):
    data_dir, made = folder
    found = glue.load(task, split, data_dir)
    expected = made[task][split]
    assert found.idx.tolist() == [row["idx"] for row in expected]
    kind = np.float32 if task == "stsb" else np.int32
    assert found.labels.dtype == kind
    np.testing.assert_array_equal(
        found.labels, np.array([row["label"] for row in expected], kind)
    )
    for column, name in zip(found.texts, glue.TASKS[task].text, strict=True):
        assert column == [row[name] for row in expected]


def test_fingerprint_is_of_the_content_not_of_the_order(folder):
    data_dir, made = folder
    found = glue.load("mrpc", "train", data_dir)
    mark = glue.describe("mrpc", "train", found)
    labels = [row["label"] for row in made["mrpc"]["train"]]
    assert mark["examples"] == 50 and mark["published"] == 3668
    assert mark["classes"] == [labels.count(0), labels.count(1)]
    order = np.random.default_rng(0).permutation(50)
    texts = tuple([column[i] for i in order] for column in found.texts)
    turned = glue.Examples(texts, found.labels[order], found.idx[order])
    assert glue.describe("mrpc", "train", turned) == mark
    turned.texts[0][0] += " "
    assert glue.describe("mrpc", "train", turned) != mark


def test_warns_where_the_size_is_not_the_published_one(folder):
    with pytest.warns(UserWarning, match=r"50 examples.*3668"):
        glue.load("mrpc", "train", folder[0])


def test_columns_are_the_tokens_of_the_models_own_file(folder, model):
    data_dir, made = folder
    found = glue.tokenised("mrpc", "train", model, 12, data_dir, buckets=(8, 12))
    reference = tokenizers.Tokenizer.from_file(str(model))
    reference.no_padding()
    reference.enable_truncation(12)
    for i, row in enumerate(made["mrpc"]["train"]):
        wanted = reference.encode(row["sentence1"], row["sentence2"])
        batch = {name: found.arrays[name][np.array([i])][0] for name in COLUMNS}
        length = len(wanted.ids)
        assert 3 <= length <= 12 and len(batch["input_ids"]) in (8, 12)
        assert batch["input_ids"].tolist()[:length] == wanted.ids
        assert batch["token_type_ids"].tolist()[:length] == wanted.type_ids
        assert batch["attention_mask"].sum() == length
        for name in COLUMNS:
            assert not batch[name][length:].any()


def test_batches_have_bucket_lengths_only(folder, model):
    found = glue.tokenised("mrpc", "train", model, 64, folder[0], buckets=(16, 24, 64))
    data = train_batches(found.arrays, 4, seed=3, epochs=2)
    seen = set()
    for batch in data:
        longest = batch["attention_mask"].sum(axis=1).max()
        width = batch["input_ids"].shape[1]
        assert width == min(size for size in (16, 24, 64) if size >= longest)
        assert batch["input_ids"].dtype == np.int32
        seen.add(width)
    assert len(seen) > 1


def test_buckets_do_not_decide_which_examples_form_a_batch(folder, model):
    orders = []
    for buckets in [(16, 32, 64), (64,)]:
        found = glue.tokenised("mrpc", "train", model, 64, folder[0], buckets=buckets)
        arrays = {**found.arrays, "row": np.arange(50)}
        orders.append([b["row"] for b in train_batches(arrays, 8, seed=5, epochs=1)])
    np.testing.assert_array_equal(*orders)


def test_eval_batches_hold_every_example_once(folder, model):
    found = glue.tokenised("cola", "validation", model, 32, folder[0])
    batches = list(eval_batches(found.arrays, 4))
    labels = np.concatenate([b["label"][b["mask"] > 0] for b in batches])
    np.testing.assert_array_equal(labels, found.arrays["label"])


def equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        np.testing.assert_array_equal(first[name], second[name])


def test_resumes_bit_for_bit_in_mid_epoch(folder, model):
    found = glue.tokenised("mrpc", "train", model, 32, folder[0])

    def data():
        return train_batches(found.arrays, 8, seed=11)

    whole = data()
    batches = [next(whole) for _ in range(20)]
    stopped = data()
    for _ in range(8):  # the second epoch starts after 6
        next(stopped)
    resumed = data()
    resumed.set_state(stopped.get_state())
    for batch in batches[8:]:
        equal(next(resumed), batch)
    first, second = (
        np.concatenate([b["label"] for b in part])
        for part in (batches[:6], batches[6:12])
    )
    assert not np.array_equal(first, second)


def print_batches(number: str, data_dir: str, model: str):
    """Print a digest of the batches that this process sees."""
    import hashlib

    found = glue.tokenised("mrpc", "train", model, 32, data_dir)
    data, digest = train_batches(found.arrays, 8, seed=2), hashlib.sha256()
    for _ in range(10):
        for name, array in sorted(next(data).items()):
            digest.update(name.encode() + array.tobytes())
    print(number, digest.hexdigest())


def test_two_processes_see_the_same_global_batches(folder, model, capsys):
    """Each process places its rows of the global batch, so all must see the same."""
    script = (
        "import sys; from tests.data.test_glue import print_batches as run; "
        "run(*sys.argv[1:])"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", script, n, folder[0], model],
            env=os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": n},
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in ("0", "1")
    ]
    found = [run.communicate(timeout=120)[0].split() for run in runs]
    print_batches("2", folder[0], model)
    assert [line[0] for line in found] == ["0", "1"]
    assert found[0][1] == found[1][1] == capsys.readouterr().out.split()[1]


def test_tokenises_once(folder, model, tmp_path, monkeypatch):
    def tokenised(length=32):
        return glue.tokenised(
            "cola", "train", model, length, folder[0], cache_dir=tmp_path
        )

    first = tokenised()
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "encode", None)
        again = tokenised()
        with pytest.raises(TypeError):
            tokenised(length=31)
    rows = np.arange(50)
    for name in (*COLUMNS, "label"):
        np.testing.assert_array_equal(
            again.arrays[name][rows], first.arrays[name][rows]
        )
    assert again.fingerprint == first.fingerprint
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_other_records_are_not_taken_from_the_cache(model, tmp_path):
    found = []
    for part in ("train", "validation"):
        data = tmp_path / part
        rows_here = rows("cola", part, 20)
        rows_here[7]["sentence"] = part
        write_parquet(data / "raw", "cola", "train", rows_here)
        glue_files.prepare("cola", data / "raw", data)
        found.append(
            glue.tokenised("cola", "train", model, 32, data, cache_dir=tmp_path / "c")
        )
    assert len(list((tmp_path / "c").iterdir())) == 2
    assert found[0].fingerprint["sha256"] != found[1].fingerprint["sha256"]


def test_a_damaged_cache_names_its_file(folder, model, tmp_path):
    glue.tokenised("cola", "train", model, 32, folder[0], cache_dir=tmp_path)
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(entry.read_bytes()[:-40])
    with pytest.raises(ValueError, match=f"{entry.name}.*delete it"):
        glue.tokenised("cola", "train", model, 32, folder[0], cache_dir=tmp_path)


def test_a_cache_that_cannot_be_written_leaves_nothing(
    folder, model, tmp_path, monkeypatch
):
    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        glue.tokenised("cola", "train", model, 32, folder[0], cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_unknown_names_come_with_the_nearest(folder):
    with pytest.raises(ValueError, match="'mrcp': did you mean mrpc"):
        glue.load("mrcp", "train", folder[0])
    with pytest.raises(ValueError, match="did you mean validation_matched"):
        glue.load("mnli", "validation", folder[0])


def test_missing_data_says_how_to_prepare_it(folder, tmp_path):
    message = r"glue/rte is not in .*experiments.prepare_data glue"
    with pytest.raises(source.MissingData, match=message):
        glue.load("rte", "train", tmp_path)
    write_task(tmp_path / "raw", "qnli", {"validation": 4})
    glue_files.prepare("qnli", tmp_path / "raw", tmp_path)
    with pytest.raises(source.MissingData, match="no split 'train'; it holds valid"):
        glue.load("qnli", "train", tmp_path)


def test_no_warning_at_the_published_size(tmp_path):
    write_task(tmp_path / "raw", "wnli", {"validation": 71})
    glue_files.prepare("wnli", tmp_path / "raw", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = glue.load("wnli", "validation", tmp_path)
    assert found.labels.tolist() == [r["label"] for r in rows("wnli", "validation", 71)]
