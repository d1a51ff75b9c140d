"""GLUE from local files: parquet, or the layout of GLUE's own zip files.

Parquet: `<task>/<split>.parquet` or `<task>/<split>-00000-of-00001.parquet`, columns
named as in TFDS. GLUE's layout: `CoLA/train.tsv`, `SST-2/dev.tsv`, ..., unpacked or as
`CoLA.zip`; for MRPC the original `msr_paraphrase_{train,test}.txt` and `dev_ids.tsv`.
The latter is parsed by TFDS's own builder.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.data import source, writer
from peftjax.data.errors import DataError
from peftjax.data.glue import get_task
from peftjax.errors import unknown

# Where the records of each split come from, for messages, and the records.
Found = dict[str, tuple[str, writer.Records]]

_TSV = {
    "validation": "dev",
    "validation_matched": "dev_matched",
    "validation_mismatched": "dev_mismatched",
}
_MRPC = {
    "dev_ids": ("dev_ids.tsv", "mrpc_dev_ids.tsv"),
    "train": ("msr_paraphrase_train.txt",),
    "test": ("msr_paraphrase_test.txt",),
}


def prepare(
    task: str, folder: str | os.PathLike[str], data_dir: str | os.PathLike[str]
) -> Path:
    """Write one task as `<data_dir>/glue/<task>/<version>`, the splits that are there.

    Args:
        task: a name of `glue.TASKS`.
        folder: holds the task in one of the two layouts.
        data_dir: TFDS's data folder.

    Returns:
        The folder written.

    Raises:
        MissingData: `folder` holds no split of the task.
        DataError: a damaged file, a missing column, a label out of range, text that is
            not UTF-8, or a split without examples.
        FileExistsError: the task is in `data_dir` already.
    """
    get_task(task)
    source.tfds()
    from tensorflow_datasets.text.glue import Glue

    with tempfile.TemporaryDirectory() as unpacked:
        found = _parquet(task, Path(folder)) or _tsv(Glue, task, Path(folder), unpacked)
        if not found:
            raise source.MissingData(
                f"{folder}: no files of glue/{task}; expected {task}/train.parquet or "
                f"{_folder(Glue, task)}/train.tsv and the like"
            )
        names = getattr(Glue.builder_configs[task], "label_classes", None)
        splits = {
            split: _checked(task, names, where, rows)
            for split, (where, rows) in found.items()
        }
        return writer.write(Glue, task, splits, data_dir)


def is_there(task: str, folder: str | os.PathLike[str]) -> bool:
    """Return whether `folder` holds the task in one of the two layouts."""
    source.tfds()
    from tensorflow_datasets.text.glue import Glue

    names = (task, _folder(Glue, task), *_archives(Glue, task))
    return any((Path(folder) / name).exists() for name in names)


def _parquet(task: str, folder: Path) -> Found:
    found: Found = {}
    for split in get_task(task).sizes:
        base = folder / task
        files = sorted(base.glob(f"{split}-*-of-*.parquet"))
        single = base / f"{split}.parquet"
        files = [single] if single.is_file() else files
        if files:
            found[split] = str(files[0]), _rows(files)
    return found


def _rows(files: list[Path]) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            "parquet is read through pyarrow: pip install 'peftjax[data]'"
        ) from error
    for file in files:
        try:
            table = parquet.read_table(file)
            table.validate(full=True)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(
                f"{file}: not a whole parquet file of UTF-8 text ({error})"
            ) from error
        yield from table.to_pylist()


def _tsv(glue: Any, task: str, folder: Path, unpacked: str) -> Found:
    base = folder / _folder(glue, task)
    base = base if base.is_dir() else _unzipped(glue, task, folder, Path(unpacked))
    builder = writer.offline(glue, {})(config=task, data_dir=unpacked)
    if task == "mrpc":
        return _mrpc(builder, base)
    found: Found = {}
    for split in get_task(task).sizes:
        part = _TSV.get(split, split)
        file = base / f"{part}.tsv"
        if file.is_file():
            found[split] = str(file), _parsed(builder, file, part.split("_")[0])
    return found


def _mrpc(builder: Any, base: Path) -> Found:
    files = {
        part: next((base / name for name in names if (base / name).is_file()), None)
        for part, names in _MRPC.items()
    }
    if all(file is None for file in files.values()):
        return {}
    absent = [_MRPC[part][0] for part, file in files.items() if file is None]
    if absent:
        raise source.MissingData(f"{base}: MRPC also needs {', '.join(absent)}")
    kinds = {"train": "train", "validation": "dev", "test": "test"}
    return {
        split: (str(base), _parsed(builder, base, kind, files))
        for split, kind in kinds.items()
    }


def _parsed(
    builder: Any, file: Path, kind: str, mrpc: Mapping[str, Any] | None = None
) -> Iterator[Mapping[str, Any]]:
    try:
        for _, record in builder._generate_examples(str(file), kind, mrpc):
            yield record
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"{file}: not in GLUE's layout, no column {error}") from error


def _folder(glue: Any, task: str) -> str:
    return "MRPC" if task == "mrpc" else glue.builder_configs[task].data_dir


def _unzipped(glue: Any, task: str, folder: Path, unpacked: Path) -> Path:
    for archive in (folder / name for name in _archives(glue, task)):
        if archive.is_file():
            try:
                with zipfile.ZipFile(archive) as file:
                    file.extractall(unpacked)
            except zipfile.BadZipFile as error:
                raise DataError(f"{archive}: not a whole zip file ({error})") from error
    return unpacked / _folder(glue, task)


def _archives(glue: Any, task: str) -> tuple[str, ...]:
    # Some of the published files carry a version in their names, as QNLIv2.zip.
    url = glue.builder_configs[task].data_url
    return f"{_folder(glue, task)}.zip", *([Path(url).name] if url else [])


def _checked(
    task: str, names: Any, where: str, rows: writer.Records
) -> Iterator[Mapping[str, Any]]:
    spec = get_task(task)
    try:
        for number, row in enumerate(rows):
            yield _record(spec, names, f"{where}, row {number}", row)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: text that is not UTF-8 ({error})") from error


def _record(spec: Any, names: Any, where: str, row: Mapping[str, Any]) -> dict:
    absent = [name for name in ("idx", "label", *spec.text) if row.get(name) is None]
    if absent:
        raise DataError(f"{where}: no value for {', '.join(absent)}; found {list(row)}")
    label = row["label"]
    if isinstance(label, str):
        if label not in names:
            raise unknown(f"label in {where}", label, names)
        label = names.index(label)
    value = int(label) if spec.classes else np.float32(label).item()
    high = spec.classes - 1 if spec.classes else 5
    if value != -1 and not 0 <= value <= high:
        raise DataError(f"{where}: the label {label}; expected 0 to {high}")
    texts = {name: row[name] for name in spec.text}
    for name, text in texts.items():
        texts[name] = text.decode() if isinstance(text, bytes) else text
    return {"idx": int(row["idx"]), "label": value, **texts}
