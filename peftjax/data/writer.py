"""Local records written as a data set of TFDS, whole or not at all.

TFDS's own builder writes into a folder beside the data; what it wrote is read back and
compared, and only then moved to its place.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftjax import storage
from peftjax.data import source

Records = Iterable[Mapping[str, Any]]
_FAILED = "{}: writing failed and nothing was kept:"


def image_builder(name: str, task: str, classes: Sequence[str] | int) -> Any:
    """Return the TFDS builder of an image task, with `image`, `label` and `file`.

    Args:
        name: of the data set, `"vtab"` or `"images"`.
        task: its TFDS configuration.
        classes: their names, or their number.
    """
    library = source.tfds()
    named = not isinstance(classes, int)
    label = {"names": list(classes)} if named else {"num_classes": classes}
    features = {
        "image": library.features.Image(),
        "label": library.features.ClassLabel(**label),
        "file": library.features.Text(),
    }
    config = library.core.BuilderConfig(name=task, version="1.0.0")

    def info(self):
        # Without shuffling the order of the source is kept.
        return library.core.DatasetInfo(
            builder=self,
            features=library.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    content = {"name": name, "BUILDER_CONFIGS": [config], "_info": info}
    content["VERSION"] = library.core.Version("1.0.0")
    # Abstract in TFDS; `offline` brings the examples.
    content["_generate_examples"] = lambda self: ()
    base = library.core.GeneratorBasedBuilder
    return types.new_class(
        "ImageTask", (base,), {"skip_registration": True}, lambda n: n.update(content)
    )


def write(
    builder: Any,
    config: str,
    splits: Mapping[str, Records],
    data_dir: str | os.PathLike[str],
) -> Path:
    """Write records as `<data_dir>/<name>/<config>/<version>`.

    Args:
        builder: a TFDS builder class that says the name, the version and the features.
        config: one of its configurations.
        splits: the records of each split, read once; images as encoded bytes.
        data_dir: TFDS's data folder.

    Returns:
        The folder written.

    Raises:
        FileExistsError: the data set is there already; it is left as it is.
        ValueError: a record does not fit the features, or a split has none.
        ImportError: TFDS calls for TensorFlow, which is absent. It does so for splits
            of more than a gigabyte.
        OSError: writing failed; what was written is removed.
    """
    name = f"{builder.name}/{config}"
    if source.splits(name, data_dir):
        raise FileExistsError(
            f"{name} is in {data_dir} already; to prepare it again, delete "
            f"{Path(data_dir) / name}"
        )
    target = Path(offline(builder, {})(config=config, data_dir=data_dir).data_dir)
    with storage.replacing_folder(target) as new:
        digests: dict[str, list[bytes]] = {split: [] for split in splits}
        kept = {
            split: _keep(f"{name}, split {split!r}", records, digests[split])
            for split, records in splits.items()
        }
        local = offline(builder, kept)(config=config, data_dir=new)
        _prepare(local, name)
        for split in splits:
            _verify(name, split, digests[split], str(new))
        for path in Path(local.data_dir).iterdir():
            os.replace(path, new / path.name)
        shutil.rmtree(new / builder.name)
    return target


def offline(builder: Any, splits: Mapping[str, Records]) -> Any:
    """Return a TFDS builder class with local records in place of its downloads."""

    def split_generators(self, dl_manager):
        return {split: enumerate(records) for split, records in splits.items()}

    # TFDS looks for checksums of downloads beside the code of a builder; here are none.
    content = {"name": builder.name, "code_path": None}
    content["_split_generators"] = split_generators
    return types.new_class(
        "Offline", (builder,), {"skip_registration": True}, lambda n: n.update(content)
    )


def _keep(
    where: str, records: Records, digests: list[bytes]
) -> Iterator[Mapping[str, Any]]:
    for record in records:
        digests.append(_digest(record))
        yield record
    if not digests:
        raise ValueError(f"{where}: no examples")


def _prepare(builder: Any, name: str) -> None:
    try:
        # It would print a folder that is about to move.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")
    except (ImportError, OSError) as error:
        # TFDS raises them anew with its own words, without `name` and `errno`.
        first = error
        while isinstance(first.__cause__, ImportError | OSError):
            first = first.__cause__
        if getattr(first, "name", None) == "tensorflow":
            raise ImportError(
                f"{name}: TFDS needs TensorFlow to write this much: "
                "pip install 'peftjax[prepare]'"
            ) from error
        if isinstance(first, ImportError):
            raise
        raise OSError(
            first.errno, f"{_FAILED.format(name)} {first.strerror}"
        ) from error
    except RuntimeError as error:
        # The writer of records is not Python and raises nothing more precise.
        if "Failed to finalize writing" not in str(error):
            raise
        raise OSError(errno.EIO, f"{_FAILED.format(name)} {error}") from error


def _verify(name: str, split: str, wanted: list[bytes], data_dir: str) -> None:
    try:
        found = list(map(_digest, source.open_split(name, split, data_dir)))
    except ValueError as error:
        raise OSError(errno.EIO, f"{_FAILED.format(name)} {error}") from error
    if sorted(wanted) != sorted(found):
        raise OSError(
            errno.EIO,
            f"{_FAILED.format(name)} of {len(wanted)} examples of split {split!r}, "
            f"{len(found)} read back, and not the same",
        )


def _digest(record: Mapping[str, Any]) -> bytes:
    result = hashlib.sha256()
    for key in sorted(record):
        value = record[key]
        if isinstance(value, str):
            value = value.encode()
        if not isinstance(value, bytes):
            value = repr(value.item() if isinstance(value, np.generic) else value)
            value = value.encode()
        result.update(f"{key} {len(value)} ".encode() + value)
    return result.digest()
