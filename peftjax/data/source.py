"""Splits of TensorFlow Datasets, opened by their official names without TensorFlow.

Whether a data set was downloaded and built by TFDS or prepared from local files by
`experiments.prepare_data`, it lies under `data_dir/<name>/<version>` and is read here.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peftjax import storage
from peftjax.data import tfds_folder
from peftjax.data.errors import DataError
from peftjax.errors import brief

_CHUNK = 1024
_PREPARE = (
    "prepare it from local files (python -m experiments.prepare_data "
    "glue|vtab|images --source DIR --data-dir DIR), or call again with download=True"
)


class MissingData(FileNotFoundError):
    """A data set or a split is not under the data folder."""


@dataclass(frozen=True)
class Source:
    """One split, readable at random.

    Attributes:
        where: its name and split, for messages.
        rows: TFDS's data source; text comes as bytes, images as encoded bytes.
        classes: names of the classes of its `label`; empty where it has none.
        files: the record files it lies in, with the examples it takes from each.
    """

    where: str
    rows: Any
    classes: tuple[str, ...]
    files: tuple[tuple[str, int, int], ...]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        # One call per example costs ten times as much as one per chunk.
        for start in range(0, len(self.rows), _CHUNK):
            yield from self.take(range(start, min(start + _CHUNK, len(self.rows))))

    def take(self, rows: Sequence[int]) -> list[Mapping[str, Any]]:
        """Return some examples.

        Raises:
            DataError: the records are damaged, or not of the features.
        """
        # Decoding raises almost anything where bytes and features do not fit.
        try:
            return self.rows.__getitems__(rows)
        except Exception as error:
            raise DataError(
                f"{self.where}: damaged records ({brief(error)})"
            ) from error

    def digest(self) -> str:
        """Return a hash of the record files' bytes and of the range read from them."""
        result = hashlib.sha256()
        for filename, skip, take in self.files:
            with open(filename, "rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            result.update(f"{content} {skip} {take}\n".encode())
        return result.hexdigest()


def tfds() -> Any:
    """Return the module `tensorflow_datasets`.

    Raises:
        ImportError: it is absent; says which extra to install.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            "data sets are read through tensorflow-datasets: "
            "pip install 'peftjax[data]'"
        ) from error
    return tensorflow_datasets


def open_split(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
) -> Source:
    """Open one split of a data set that TFDS can read.

    Args:
        name: TFDS name, `"glue/cola"` or with a version `"kitti:3.2.0"`.
        split: TFDS split, `"train"` or `"train[:800]+validation[:200]"`.
        data_dir: TFDS's data folder; by default TFDS's own default.
        download: let TFDS download and build what is absent. This needs the network,
            and TensorFlow for some data sets.

    Raises:
        MissingData: no such data set or split in `data_dir`.
        ImportError: tensorflow-datasets, or what it needs to build, is absent.
        DataError: the folder is damaged or not only data, the records do not allow
            random access, or the split is empty.
    """
    library = tfds()
    data_dir = _here(name, data_dir)
    if download:
        _download(library, name, data_dir)
    builder = _prepared(name, data_dir)
    folder = Path(builder.data_path)
    with _naming(folder):
        try:
            instructions = builder.info.splits[split].file_instructions
        except (KeyError, ValueError) as error:
            raise MissingData(
                f"{name} in {folder}: no split {split!r}; it holds "
                f"{', '.join(builder.info.splits)}"
            ) from error
        files = tuple((item.filename, item.skip, item.take) for item in instructions)
        _check_files(folder, split, files)
        features = builder.info.features
        images = [key for key, kind in features.items() if _is_image(library, kind)]
        decoders = {key: library.decode.SkipDecoding() for key in images}
        try:
            rows = builder.as_data_source(split, decoders=decoders)
        except NotImplementedError as error:
            raise DataError(
                f"{folder} holds {builder.info.file_format} records, which allow no "
                "random access: prepare it with file_format='array_record'"
            ) from error
        for filename, _, _ in files:
            if not Path(filename).is_file():
                raise DataError(f"{folder}, split {split!r}: no file {filename}")
        label = features["label"] if "label" in features else None
        names = tuple(getattr(label, "names", ()))
        if len(set(names)) != len(names):
            raise DataError(f"{folder}: label: the names of classes are not distinct")
    return Source(f"{name}:{split} in {folder}", rows, names, files)


def splits(
    name: str, data_dir: str | os.PathLike[str] | None = None
) -> tuple[str, ...]:
    """Return the splits that `data_dir` holds of a data set; none if it is absent."""
    tfds()
    data_dir = _here(name, data_dir)
    try:
        builder = _prepared(name, data_dir)
    except MissingData:
        return ()
    with _naming(Path(builder.data_path)):
        return tuple(builder.info.splits)


def check_labels(where: str, labels: np.ndarray, low: float, high: float) -> None:
    """Raise DataError unless every label lies from `low` to `high`; NaN does not."""
    wrong = np.flatnonzero(~((labels >= low) & (labels <= high)))
    if len(wrong):
        raise DataError(
            f"{where}: example {wrong[0]} has the label {labels[wrong[0]]}; expected "
            f"{low} to {high} ({len(wrong)} of {len(labels)} labels are out of range)"
        )


def check_size(name: str, examples: int, published: int) -> None:
    """Warn where a split has not its published size."""
    if examples != published:
        warnings.warn(
            f"{name}: {examples} examples, where the published split has {published}; "
            "results do not compare with published ones",
            stacklevel=3,
        )


def _is_image(library: Any, feature: Any) -> bool:
    return isinstance(feature, library.features.Image)


def _check_files(
    folder: Path, split: str, files: Sequence[tuple[str, int, int]]
) -> None:
    """Raise DataError unless a split lies in files of its folder."""
    if not any(take for _, _, take in files):
        raise DataError(f"{folder}, split {split!r}: no examples")
    for filename, _, _ in files:
        if not Path(filename).resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{folder}, split {split!r}: {filename} lies outside")


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Name the folder in whatever TFDS raises of the files in it."""
    try:
        yield
    except (DataError, MissingData, ImportError):
        raise
    except Exception as error:
        raise DataError(
            f"{folder}: not a data set that TFDS can read ({brief(error)})"
        ) from error


def _here(
    name: str, data_dir: str | os.PathLike[str] | None
) -> str | os.PathLike[str] | None:
    """Return a local data folder, with a copy of the data set if it is in a bucket."""
    return data_dir and storage.mirrored(data_dir, name.partition(":")[0])


def _prepared(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    from tensorflow_datasets.core import read_only_builder, registered
    from tensorflow_datasets.core.utils import file_utils

    relative = name.partition(":")[0]
    where = storage.absolute(data_dir) if data_dir else "TFDS's default data folder"
    absent = MissingData(f"{name} is not in {where}: {_PREPARE}")
    if data_dir and storage.in_bucket(storage.path(data_dir)):
        raise absent  # what is there was copied
    for root in file_utils.list_data_dirs(given_data_dir=data_dir):
        tfds_folder.check(Path(root) / relative)
    # From files, never from the code of a builder: the code of some is not registered
    # before its module is imported, and a version other than its own is not found.
    try:
        with _naming(Path(data_dir or "") / relative):
            return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except DataError as error:
        if not isinstance(error.__cause__, registered.DatasetNotFoundError):
            raise
        raise absent from error.__cause__


def _download(library: Any, name: str, data_dir: Any) -> None:
    # TFDS registers GLUE only when this module is imported.
    import tensorflow_datasets.text.glue  # noqa: F401

    builder = library.builder(name, data_dir=data_dir, file_format="array_record")
    try:
        builder.download_and_prepare()
    except ModuleNotFoundError as error:
        raise ImportError(
            f"TFDS needs {error.name} to build {name}: pip install 'peftjax[prepare]'"
        ) from error
