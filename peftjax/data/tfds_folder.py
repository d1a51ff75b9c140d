"""A folder of TFDS is looked at before TFDS reads it.

TFDS imports whatever module a folder's `features.json` names, and follows what the
folder links to. A received folder is data: it chooses neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftjax.data.errors import DataError, json_object, read_text

_ROOT = "tensorflow_datasets.core.features."
FEATURES = frozenset(
    _ROOT + name
    for name in (
        "audio_feature.Audio",
        "bounding_boxes.BBoxFeature",
        "class_label_feature.ClassLabel",
        "feature.Tensor",
        "features_dict.FeaturesDict",
        "image_feature.Image",
        "labeled_image.LabeledImage",
        "scalar.Scalar",
        "sequence_feature.Sequence",
        "tensor_feature.Tensor",
        "text_feature.Text",
        "translation_feature.Translation",
        "translation_feature.TranslationVariableLanguages",
        "video_feature.Video",
    )
)
# A class under its names in JSON: of today, of the message's field, and of old TFDS.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
_MESSAGE_KEYS = ("proto_cls", "protoCls")


def check(folder: Path) -> None:
    """Raise DataError unless the data sets below a folder are only data.

    Args:
        folder: of one data set, with its configurations and versions.

    Raises:
        DataError: a link that leaves the folder, or a JSON file that is none or names a
            class that is not one of TFDS's features.
    """
    root = folder.resolve()
    for path in _visible(folder, "*"):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise DataError(
                f"{path}: a link to {path.resolve()}, outside of the data set; put the "
                "file itself there"
            )
    for name in ("features.json", "dataset_info.json"):
        for file in _visible(folder, name):
            for key, value in _entries(json_object(file, read_text(file))):
                _check_entry(file, key, value)


def _visible(folder: Path, name: str) -> Iterator[Path]:
    """Yield what lies below a folder, but for what is still being written."""
    for path in sorted(folder.rglob(name)):
        parts = path.relative_to(folder).parts
        if not any(part.startswith(".") for part in parts):
            yield path


def _entries(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield every `(key, value)` of the objects in a JSON document."""
    left = [document]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            yield from one.items()
        if isinstance(one, dict | list):
            left += one.values() if isinstance(one, dict) else one


def _check_entry(file: Path, key: str, value: Any) -> None:
    named = isinstance(value, str) or key.startswith("python")
    if key in _CLASS_KEYS and named and str(value) not in FEATURES:
        raise DataError(
            f"{file}: {key} is {str(value)[:80]!r}: expected one of TFDS, such as "
            f"{_ROOT}image_feature.Image; no other module is imported for a data set"
        )
    if key in _MESSAGE_KEYS and not str(value).startswith("tensorflow_datasets."):
        raise DataError(
            f"{file}: {key} is {str(value)[:80]!r}: expected a message of TFDS"
        )
