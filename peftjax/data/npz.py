"""Arrays of an npz file, refused before anything of their size is allocated."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from peftjax.data.errors import DataError
from peftjax.errors import brief


class Header(NamedTuple):
    """What a member says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Npz:
    """An open npz file; nothing of it is unpickled or executed.

    Attributes:
        path: the file.
        headers: shape and dtype of each array by name, each as large as its member.
    """

    def __init__(self, path: Path, file: zipfile.ZipFile):
        self.path, self._file = path, file
        self.headers: dict[str, Header] = {}
        for info in file.infolist():
            name = info.filename.removesuffix(".npy")
            if name in self.headers or name == info.filename:
                raise DataError(f"{path}: {info.filename}: expected arrays, one a name")
            with file.open(info) as stream:
                header = _header(stream)
                size = info.file_size - stream.tell()
            if header.nbytes != size:
                raise DataError(
                    f"{path}: {name}: the header says {header}, and there are {size} "
                    "bytes"
                )
            self.headers[name] = header

    def __getitem__(self, name: str) -> np.ndarray:
        with _naming(self.path), self._file.open(f"{name}.npy") as stream:
            return npy.read_array(stream, allow_pickle=False)


@contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """Open an npz file.

    Raises:
        DataError: it is no whole npz file of arrays.
        FileNotFoundError: there is none.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    with _naming(path):
        file = zipfile.ZipFile(path)
    with file:
        with _naming(path):
            opened = Npz(path, file)
        yield opened


def _header(stream: IO[bytes]) -> Header:
    read = {
        (1, 0): npy.read_array_header_1_0,
        (2, 0): npy.read_array_header_2_0,
    }[npy.read_magic(stream)]
    shape, _, dtype = read(stream)
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError(f"an array of {dtype}{list(shape)}")
    return Header(shape, dtype)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in whatever the readers of zip and npy raise of damaged bytes."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{path}: not a whole npz file of arrays ({brief(error)})"
        ) from error
