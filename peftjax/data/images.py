"""Images of any task: decoded as torch papers decode them, resized, normalised.

Preprocessing of the VTAB-1k papers, training and test alike: resize to a square with
bicubic interpolation, no crop, no flip, then [0, 1], then one of two normalisations.
Decoding and resizing are Pillow's, as in those papers, so that pixels agree.
"""

from __future__ import annotations

import io
import operator
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from peftjax.data import source
from peftjax.data.errors import DataError
from peftjax.data.fingerprint import fingerprint
from peftjax.data.views import View, original, resize
from peftjax.errors import brief, unknown

Normalisation = Literal["clip", "imagenet", "unit"]
Encoded = tuple[bytes, str]
_CHUNK = 256
# What older Pillows call a 16-bit grey PNG.
_PNG_16 = ("I", "PNG")
EXTENSIONS = frozenset(
    f".{kind}" for kind in "bmp gif jpeg jpg pgm png ppm tif tiff webp".split()
)

# Mean and standard deviation of each channel, of pixels in [0, 1].
NORMALISATIONS = {
    "clip": (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class Images:
    """A column of images that batches like a uint8 array `[N, size, size, 3]`.

    `images[rows]` decodes and resizes the rows taken, over the machine's cores; where a
    split fits in memory, `np.asarray(images)` does it once for all.

    Args:
        read: returns the images of some rows, encoded, with their names for messages.
        length: N.
        size: height and width.
        scale: pixels are multiplied by it (255 where a data set stores 0 and 1).
        view: what is taken of an image, of `peftjax.data.views`. `original` keeps each
            in its own size: what is indexed is then an array of arrays, for
            `augment.cropped`.
    """

    def __init__(
        self,
        read: Callable[[Sequence[int]], list[Encoded]],
        length: int,
        size: int,
        scale: int = 1,
        view: View = resize,
    ):
        self.read, self.length, self.size, self.scale = read, length, size, scale
        self.view = view
        self.shape = (length, size, size, 3)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, rows: Any) -> np.ndarray:
        rows = np.arange(self.length)[rows].tolist()
        result = np.empty((len(rows), *self.shape[1:]), np.uint8)
        if self.view is original:
            result = np.empty(len(rows), object)
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            seen = self._map(lambda x: self.view(x, self.size), part)
            for place, image in enumerate(seen, start):
                result[place] = image
        return result

    def seen(self, view: View) -> Images:
        """Return the same images by another view."""
        return Images(self.read, self.length, self.size, self.scale, view)

    def taken(self, rows: Sequence[int] | np.ndarray) -> Images:
        """Return some of the images."""

        def read(taken: Sequence[int]) -> list[Encoded]:
            return self.read([int(rows[row]) for row in taken])

        return Images(read, len(rows), self.size, self.scale, self.view)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def originals(self) -> Iterator[np.ndarray]:
        """Yield every image in its own size, uint8 `[H, W, 3]`."""
        for start in range(0, self.length, _CHUNK):
            rows = range(start, min(start + _CHUNK, self.length))
            yield from self._map(np.asarray, rows)

    def _map(
        self, function: Callable[[Any], np.ndarray], rows: Sequence[int]
    ) -> list[np.ndarray]:
        # Pillow leaves the interpreter lock while it decodes and resizes.
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda x: function(self._image(*x)), self.read(rows)))

    def _image(self, content: bytes, name: str) -> Any:
        image = decode(content, name)
        if self.scale == 1:
            return image
        return image.point(lambda value: min(value * self.scale, 255))


class Split(NamedTuple):
    """One split of an image task.

    Attributes:
        name: of the task, for results.
        split: of the task.
        images: `[N, size, size, 3]`, uint8, read when indexed.
        labels: `[N]`, int32.
        classes: number of classes.
        published: number of examples of the published split, if there is one.
    """

    name: str
    split: str
    images: Images
    labels: np.ndarray
    classes: int
    published: int | None = None

    def arrays(self, in_memory: bool = False) -> dict[str, Any]:
        """Return `image` and `label` for `peftjax.data.pipeline`.

        Args:
            in_memory: decode all images now; right for 1,000 training images that are
                read once per epoch, wrong for a test split of 70,000.
        """
        images = np.asarray(self.images) if in_memory else self.images
        return {"image": images, "label": self.labels}

    def describe(self) -> dict[str, Any]:
        """Return the fingerprint, over the decoded images in their own size."""
        rows = ([repr(x.shape).encode(), x.tobytes()] for x in self.images.originals())
        result = fingerprint(rows, self.labels, self.classes)
        result = {"dataset": self.name, "split": self.split} | result
        known = self.published is not None
        return result | {"published": self.published} if known else result


def decode(content: bytes, name: str) -> Any:
    """Return an encoded image as an RGB `PIL.Image`, upright.

    Grey becomes three equal channels; 16 bits are scaled to 8; the orientation that a
    camera wrote into the file (EXIF) is applied.

    Raises:
        DataError: the bytes are no whole image, or one of 32 bits a channel, whose
            white is unknown; the message holds `name`.
    """
    from PIL import Image, ImageOps

    # Pillow's readers raise almost anything of damaged bytes.
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        wide = image.mode.startswith("I;16") or (image.mode, image.format) == _PNG_16
        if not wide and image.mode not in ("I", "F"):
            return image.convert("RGB")
        pixels = np.asarray(image)
    except Exception as error:
        raise DataError(f"{name}: not a whole image ({brief(error)})") from error
    if not wide:
        raise DataError(
            f"{name}: expected 8 or 16 bits a channel, found Pillow's mode {image.mode}"
        )
    # As Pillow does for 16 bits in colour; converting grey would cut at 255.
    return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGB")


def image_paths(folder: Path) -> list[Path]:
    """Return the images of a folder, sorted; other files are reported and left out.

    What an image is, is decided by the extension. Hidden files are no one's images.
    """
    files = sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".")
    )
    images = [path for path in files if path.suffix.lower() in EXTENSIONS]
    stray = [path.name for path in files if path.suffix.lower() not in EXTENSIONS]
    if stray:
        more = f" and {len(stray) - 5} more" if len(stray) > 5 else ""
        warnings.warn(
            f"{folder}: left out what is no image by its extension: "
            f"{', '.join(stray[:5])}{more}",
            stacklevel=2,
        )
    return images


def normalise(images: Any, how: Normalisation = "imagenet") -> Any:
    """Return pixels as a model reads them; NumPy in, NumPy out, and JAX likewise.

    `"clip"` is CLIP's own, `"imagenet"` that of NOAH, FacT, RepAdapter, GLoRA and
    Hydra, `"unit"` (pixels in [0, 1] as they are) that of VPT, SSF and Binary-Adapter:
    results of one do not compare with results of another. Inside a jitted step it moves
    a quarter of the bytes to the device.

    Args:
        images: `[..., 3]`, uint8.
        how: `"clip"`, `"imagenet"` or `"unit"`.

    Returns:
        `[..., 3]`, float32: `(images / 255 - mean) / std`.

    Raises:
        ValueError: there is no such normalisation, or the images are not uint8.
    """
    if how not in NORMALISATIONS:
        raise unknown("normalisation", how, NORMALISATIONS)
    if images.dtype != np.uint8:
        raise ValueError(f"images: expected uint8, found {images.dtype}")
    mean, std = (np.array(values, np.float32) for values in NORMALISATIONS[how])
    return (images.astype(np.float32) / np.float32(255) - mean) / std


def load(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    size: int,
) -> Split:
    """Open one split of a task that `experiments.prepare_data images` made.

    Args:
        name: of the npz file or class folder it was made from.
        split: of the source, such as `"train"`, `"val"`, `"test"`.
        data_dir: TFDS's data folder.
        size: height and width that images are resized to.

    Raises:
        MissingData: no such task or split.
        ValueError: an image is damaged or a label out of range.
    """
    opened = source.open_split(f"images/{name}", split, data_dir)
    labels, images = read_source(opened, len(opened.classes), size)
    return Split(f"images/{name}", split, images, labels, len(opened.classes))


def read_source(
    opened: source.Source,
    classes: int,
    size: int,
    label: Callable[[Any], int] | str = "label",
    scale: int = 1,
) -> tuple[np.ndarray, Images]:
    """Return labels and images of an opened split.

    Args:
        opened: of `source.open_split`.
        classes: number of classes.
        size: height and width that images are resized to.
        label: derives the label from an example, or names its annotation.
        scale: as in `Images`.

    Raises:
        DataError: a label out of range, or none that can be derived.
    """
    derive = operator.itemgetter(label) if isinstance(label, str) else label
    try:
        labels = np.array([int(derive(row)) for row in opened], np.int32)
    except (TypeError, KeyError, IndexError, OverflowError) as error:
        raise DataError(f"{opened.where}: no label ({brief(error)})") from error
    source.check_labels(opened.where, labels, 0, classes - 1)

    def read(rows: Sequence[int]) -> list[Encoded]:
        names = (f"{opened.where}, example {row}" for row in rows)
        try:
            return [(row["image"], name) for row, name in zip(opened.take(rows), names)]
        except (TypeError, KeyError) as error:
            raise DataError(f"{opened.where}: no image ({brief(error)})") from error

    return labels, Images(read, len(labels), size, scale)


def read_files(
    where: str, files: Sequence[tuple[Path, int]], classes: int, size: int
) -> tuple[np.ndarray, Images]:
    """Return labels and images of files; see `read_source`."""
    labels = np.array([label for _, label in files], np.int32)
    source.check_labels(where, labels, 0, classes - 1)
    return labels, of_files([path for path, _ in files], size)


def of_files(paths: Sequence[Path], size: int, view: View = resize) -> Images:
    """Return images of files, read when indexed."""

    def read(rows: Sequence[int]) -> list[Encoded]:
        return [(paths[row].read_bytes(), str(paths[row])) for row in rows]

    return Images(read, len(paths), size, view=view)


def png(picture: np.ndarray) -> bytes:
    """Return a picture `[H, W, 1 or 3]`, uint8, as a PNG file."""
    from PIL import Image

    stream = io.BytesIO()
    single = picture.shape[2] == 1
    image = Image.fromarray(picture[:, :, 0] if single else picture)
    # Higher levels take several times longer and save little on small photographs.
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()
