"""Bad sources and failing writes: a clear error, and nothing half written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from peftjax.data import glue, glue_files, source
from tests.helpers.glue_case import rows, write_parquet, write_task
from tests.helpers.no_tensorflow import files, no_tensorflow  # noqa: F401

pytest.importorskip("tensorflow_datasets", reason="needs peftjax[data]")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs peftjax[data]")

pytestmark = pytest.mark.filterwarnings("ignore:.*published split has")
COUNTS = {"train": 12, "validation": 5, "test": 4}


def spoil(folder: Path, how: str) -> None:
    file = folder / "cola/validation.parquet"
    part = rows("cola", "validation", 5)
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-20])
    elif how == "empty":
        parquet.write_table(parquet.read_table(file)[:0], file)
    elif how == "label":
        part[3]["label"] = 2
    elif how == "withheld":
        part[3]["label"] = None
    elif how == "column":
        part = [{"text": row["sentence"], "label": 0, "idx": 0} for row in part]
    elif how == "utf8":
        part = [{**row, "sentence": row["sentence"].encode()} for row in part]
        part[2]["sentence"] = b"caf\xe9"
    if how not in ("truncated", "empty"):
        write_parquet(folder, "cola", "validation", part)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", r"validation\.parquet: not a whole parquet file"),
        ("empty", "split 'validation': no examples"),
        ("label", r"validation\.parquet, row 3: .*label 2; expected 0 to 1"),
        ("withheld", r"validation\.parquet, row 3: no value for label"),
        ("column", r"row 0: no value for sentence; found \['text'"),
        ("utf8", r"validation\.parquet: text that is not UTF-8"),
    ],
)
def test_a_bad_split_leaves_nothing(tmp_path, how, message):
    write_task(tmp_path / "raw", "cola", COUNTS)
    spoil(tmp_path / "raw", how)
    with pytest.raises(ValueError, match=message):
        glue_files.prepare("cola", tmp_path / "raw", tmp_path / "data")
    assert not files(tmp_path / "data")
    assert source.splits("glue/cola", tmp_path / "data") == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"sentence\tlabel\ncaf\xe9\t1\n", "text that is not UTF-8"),
        (b"sentence\tlabel\ngood\t7\n", "row 0: .*label 7; expected 0 to 1"),
        (b"sentence\tlabel\ngood\tfine\n", "not in GLUE's layout|invalid literal"),
        (b"text\tlabel\ngood\t1\n", "not in GLUE's layout, no column 'sentence'"),
        (b"sentence\tlabel\n", "split 'train': no examples"),
    ],
)
def test_a_bad_table_leaves_nothing(tmp_path, content, message):
    (tmp_path / "raw/SST-2").mkdir(parents=True)
    (tmp_path / "raw/SST-2/train.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        glue_files.prepare("sst2", tmp_path / "raw", tmp_path / "data")
    assert not files(tmp_path / "data")


FULL_DISK = """
import resource, signal, sys
from peftjax.data import glue_files
import tensorflow_datasets.text.glue, array_record.python.array_record_module
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    glue_files.prepare("cola", sys.argv[1], sys.argv[2])
except OSError as error:
    print(error)
"""


def test_a_write_that_fails_leaves_nothing(tmp_path):
    """The system refuses to let files grow, as a full disk does."""
    write_task(tmp_path / "raw", "cola", {"train": 400, "validation": 4})
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "raw", tmp_path / "data"],
        env={"PYTHONPATH": ":".join(sys.path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    message = "glue/cola: writing failed and nothing was kept: "
    assert message in run.stdout, run.stderr
    assert not files(tmp_path / "data")


def test_a_full_disk_is_said_to_be_full(tmp_path, monkeypatch):
    from tensorflow_datasets.core import dataset_info

    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    write_task(tmp_path / "raw", "cola", COUNTS)
    monkeypatch.setattr(dataset_info.DatasetInfo, "write_to_directory", full)
    with pytest.raises(OSError, match="nothing was kept: No space left") as caught:
        glue_files.prepare("cola", tmp_path / "raw", tmp_path / "data")
    assert caught.value.errno == 28
    assert not files(tmp_path / "data")


def test_what_reads_back_differently_is_not_kept(tmp_path, monkeypatch):
    from tensorflow_datasets.core import file_adapters

    write = file_adapters.ArrayRecordFileAdapter.write_examples

    def lossy(path, examples, *arguments, **settings):
        return write(path, list(examples)[:-1], *arguments, **settings)

    write_task(tmp_path / "raw", "cola", COUNTS)
    adapter = file_adapters.ArrayRecordFileAdapter
    monkeypatch.setattr(adapter, "write_examples", staticmethod(lossy))
    with pytest.raises(OSError, match="nothing was kept"):
        glue_files.prepare("cola", tmp_path / "raw", tmp_path / "data")
    assert not files(tmp_path / "data")


@pytest.mark.skipif("tensorflow" in sys.modules, reason="TensorFlow is imported")
def test_tensorflow_is_named_where_tfds_calls_for_it(tmp_path, monkeypatch):
    from tensorflow_datasets.core import shuffle

    write_task(tmp_path / "raw", "cola", COUNTS)
    # TFDS keeps a split in memory up to a size, and spills with TensorFlow beyond it.
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 50)
    with pytest.raises(ImportError, match=r"pip install 'peftjax\[prepare\]'"):
        glue_files.prepare("cola", tmp_path / "raw", tmp_path / "data")
    assert not files(tmp_path / "data")


def test_damaged_records_are_named(tmp_path):
    write_task(tmp_path / "raw", "cola", {"train": 3000})
    target = glue_files.prepare("cola", tmp_path / "raw", tmp_path)
    (file,) = target.glob("*array_record*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    file.write_bytes(content)
    with pytest.raises(ValueError, match="glue/cola:train in .*: damaged records"):
        glue.load("cola", "train", tmp_path)


def test_an_empty_part_of_a_split_is_refused(tmp_path):
    write_task(tmp_path / "raw", "cola", COUNTS)
    glue_files.prepare("cola", tmp_path / "raw", tmp_path)
    with pytest.raises(
        ValueError, match=r"glue/cola/2.0.0, split 'train\[:0\]': no examples"
    ):
        source.open_split("glue/cola", "train[:0]", tmp_path)
    with pytest.raises(source.MissingData, match="no split 'dev'; it holds train"):
        source.open_split("glue/cola", "dev", tmp_path)


def test_records_that_allow_no_random_access(tmp_path):
    write_task(tmp_path / "raw", "cola", COUNTS)
    target = glue_files.prepare("cola", tmp_path / "raw", tmp_path)
    info = target / "dataset_info.json"
    content = json.loads(info.read_text())
    info.write_text(json.dumps({**content, "fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="allow no random access"):
        glue.load("cola", "train", tmp_path)
