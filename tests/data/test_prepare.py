"""GLUE from local files: every layout, read back as it was."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from experiments import prepare_data
from peftjax.data import glue, glue_files, source
from tests.helpers.glue_case import rows, write_parquet, write_task
from tests.helpers.no_tensorflow import files, no_tensorflow  # noqa: F401

tfds = pytest.importorskip("tensorflow_datasets", reason="needs peftjax[data]")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs peftjax[data]")

pytestmark = pytest.mark.filterwarnings("ignore:.*published split has")
COUNTS = {"train": 12, "validation": 5, "test": 4}


def write_tsv(folder: Path, task: str, records: dict[str, list]) -> None:
    """Write a task as GLUE's download has it."""
    from tensorflow_datasets.text.glue import Glue

    config = Glue.builder_configs[task]
    base = folder / config.data_dir
    base.mkdir(parents=True)
    for split, part in records.items():
        labelled = not split.startswith("test")
        columns = dict(config.text_features)
        lines = []
        for row in part:
            label = row["label"]
            if config.label_classes and config.label_classes[0] != "0" and labelled:
                strings = task in ("mnli", "qnli", "rte")
                label = config.label_classes[label] if strings else label
            texts = [row[name] for name in columns]
            lines.append("\t".join([*texts, str(label)] if labelled else texts))
        header = [*columns.values(), config.label_column][: len(columns) + labelled]
        if task == "cola" and labelled:
            lines = [f"x\t{row['label']}\t\t{row['sentence']}" for row in part]
        else:
            lines.insert(0, "\t".join(header))
        name = split.replace("validation", "dev")
        (base / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def made(task: str) -> dict[str, list]:
    splits = glue.TASKS[task].sizes
    return {split: rows(task, split, 3 + i) for i, split in enumerate(splits)}


def check(task: str, data_dir: Path, records: dict[str, list]) -> None:
    for split, part in records.items():
        found = glue.load(task, split, data_dir)
        for column, name in zip(found.texts, glue.TASKS[task].text, strict=True):
            assert column == [row[name] for row in part]
        expected = np.array([row["label"] for row in part], found.labels.dtype)
        np.testing.assert_array_equal(found.labels, expected)


@pytest.mark.parametrize("task", [task for task in glue.TASKS if task != "mrpc"])
def test_glues_own_layout(task, tmp_path):
    records = made(task)
    write_tsv(tmp_path / "raw", task, records)
    assert glue_files.is_there(task, tmp_path / "raw")
    target = glue_files.prepare(task, tmp_path / "raw", tmp_path)
    assert target == tmp_path / "glue" / task / "2.0.0"
    check(task, tmp_path, records)


def test_glues_own_zip_file(tmp_path):
    records = made("qnli")
    write_tsv(tmp_path / "raw", "qnli", records)
    (tmp_path / "zips").mkdir()
    # The published name of this one differs from its folder's.
    with zipfile.ZipFile(tmp_path / "zips/QNLIv2.zip", "w") as archive:
        for file in files(tmp_path / "raw"):
            archive.write(file, file.relative_to(tmp_path / "raw"))
    assert glue_files.is_there("qnli", tmp_path / "zips")
    glue_files.prepare("qnli", tmp_path / "zips", tmp_path)
    check("qnli", tmp_path, records)
    (tmp_path / "zips/RTE.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=r"RTE\.zip: not a whole zip file"):
        glue_files.prepare("rte", tmp_path / "zips", tmp_path)


def test_mrpc_from_its_original_files(tmp_path):
    base = tmp_path / "raw/MRPC"
    base.mkdir(parents=True)
    head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    part = rows("mrpc", "train", 9)

    def line(i, row):
        texts = f"{row['sentence1']}\t{row['sentence2']}"
        return f"{row['label']}\t{i}\t{100 + i}\t{texts}\n"

    body = head + "".join(line(i, row) for i, row in enumerate(part))
    (base / "msr_paraphrase_train.txt").write_text("\ufeff" + body, encoding="utf-8")
    (base / "msr_paraphrase_test.txt").write_text("\ufeff" + body, encoding="utf-8")
    with pytest.raises(source.MissingData, match=r"MRPC also needs dev_ids\.tsv"):
        glue_files.prepare("mrpc", tmp_path / "raw", tmp_path)
    (base / "dev_ids.tsv").write_text("2\t102\n5\t105\n")
    glue_files.prepare("mrpc", tmp_path / "raw", tmp_path)
    validation = [part[2], part[5]]
    train = [row for i, row in enumerate(part) if i not in (2, 5)]
    check("mrpc", tmp_path, {"train": train, "validation": validation})
    withheld = [{**row, "label": -1} for row in part]
    check("mrpc", tmp_path, {"test": withheld})
    assert glue.load("mrpc", "validation", tmp_path).idx.tolist() == [2, 5]


def test_parquet_in_several_files(tmp_path):
    part = rows("cola", "train", 10)
    for i, piece in enumerate((part[:6], part[6:])):
        write_parquet(tmp_path / "raw", "cola", f"train-{i:05d}-of-00002", piece)
    glue_files.prepare("cola", tmp_path / "raw", tmp_path)
    check("cola", tmp_path, {"train": part})


def test_a_task_that_is_there_is_left_as_it_is(tmp_path):
    write_task(tmp_path / "raw", "cola", COUNTS)
    target = glue_files.prepare("cola", tmp_path / "raw", tmp_path)
    before = {path: path.read_bytes() for path in files(target)}
    write_task(tmp_path / "raw", "cola", {"train": 3})
    with pytest.raises(FileExistsError, match="to prepare it again, delete"):
        glue_files.prepare("cola", tmp_path / "raw", tmp_path)
    assert {path: path.read_bytes() for path in files(target)} == before


def test_download_goes_through_tfdss_own_builder(tmp_path, monkeypatch):
    from tensorflow_datasets.text.glue import Glue

    records = write_task(tmp_path / "raw", "cola", COUNTS)

    patch = pytest.MonkeyPatch()

    def download(builder):
        patch.undo()
        assert builder.info.full_name == "glue/cola/2.0.0"
        assert builder.info.file_format.value == "array_record"
        glue_files.prepare("cola", tmp_path / "raw", tmp_path / "data")

    patch.setattr(Glue, "download_and_prepare", download)
    found = glue.load("cola", "train", tmp_path / "data", download=True)
    assert found.texts[0] == [row["sentence"] for row in records["train"]]

    def absent(builder):
        raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")

    monkeypatch.setattr(Glue, "download_and_prepare", absent)
    message = r"TFDS needs tensorflow to build glue/rte: pip install 'peftjax\[prep"
    with pytest.raises(ImportError, match=message):
        glue.load("rte", "train", tmp_path / "data", download=True)


def test_command(tmp_path, capsys):
    write_task(tmp_path / "raw", "cola", COUNTS)
    write_task(tmp_path / "raw", "stsb", COUNTS)
    options = ["--source", str(tmp_path / "raw"), "--data-dir", str(tmp_path / "data")]
    assert prepare_data.main(["glue", *options]) == 0
    first = capsys.readouterr().out
    assert "cola: wrote" in first and "stsb: wrote" in first
    assert "'examples': 12" in first and "'published': 8551" in first
    assert prepare_data.main(["glue", *options, "--tasks", "cola"]) == 0
    assert "cola: left as it is" in capsys.readouterr().out
    assert prepare_data.main(["glue", *options, "--tasks", "colla,rte"]) == 1
    errors = capsys.readouterr().err
    assert "unknown GLUE task 'colla': did you mean cola" in errors
    assert "no files of glue/rte" in errors
    assert prepare_data.main(["vtab", *options]) == 1
    assert "no vtab task in" in capsys.readouterr().err
    options[1] = str(tmp_path / "absent")
    assert prepare_data.main(["glue", *options]) == 1
    assert "absent: no such folder" in capsys.readouterr().err


REAL = ("cola", "sst2", "mrpc", "stsb", "wnli", "qnli")


@pytest.mark.realdata
@pytest.mark.parametrize("task", REAL)
def test_real_glue(shared_data, tmp_path, task):
    glue_files.prepare(task, shared_data / "glue", tmp_path)
    for split in source.splits(f"glue/{task}", tmp_path):
        table = parquet.read_table(shared_data / "glue" / task / f"{split}.parquet")
        wanted = table.sort_by("idx")
        found = glue.load(task, split, tmp_path)
        assert found.idx.tolist() == wanted["idx"].to_pylist()
        assert found.labels.tolist() == wanted["label"].to_pylist()
        for column, name in zip(found.texts, glue.TASKS[task].text, strict=True):
            assert column == wanted[name].to_pylist()
        mark = glue.describe(task, split, found)
        assert mark["examples"] == glue.TASKS[task].sizes[split] == table.num_rows
        direct = tfds.data_source(
            f"glue/{task}", split=split, data_dir=tmp_path, download=False
        )
        assert len(direct) == table.num_rows
        assert direct[3]["idx"] in found.idx
