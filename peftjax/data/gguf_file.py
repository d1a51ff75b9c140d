"""A received GGUF file, opened through the package `gguf`, every size checked first.

The package believes what a file says of its own sizes. Here each read is compared with
the file's length, and the number of reads is bounded, before anything is allocated.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from peftjax.data.errors import DataError
from peftjax.errors import brief

MOST_READS = 2**22  # a vocabulary of 256k tokens with its merges takes a third of it
DEEPEST = 1  # lists in lists are in no file of a language model


class GGUF(NamedTuple):
    """What a file holds.

    Attributes:
        path: the file.
        facts: its metadata, `{"llama.block_count": 30, ...}`: numbers, texts, lists.
        tensors: of the package's reader, by name; `data` is mapped, not read.
    """

    path: Path
    facts: Mapping[str, Any]
    tensors: Mapping[str, Any]


def open_gguf(path: str | os.PathLike[str]) -> GGUF:
    """Return the metadata and the tensors of a file; of those only where they lie.

    Raises:
        ImportError: `gguf` is absent; says which extra to install.
        DataError: the file is truncated, damaged, one of several parts, or no GGUF
            file.
    """
    path = Path(path)
    try:
        reader = _reader()(path)
        facts = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith("GGUF.")
        }
    except (ImportError, DataError):
        raise
    except Exception as error:
        raise DataError(
            f"{path}: not a whole GGUF file ({brief(error)}); fetch it again"
        ) from error
    parts = facts.get("split.count", 1)
    if parts not in (0, 1):
        raise DataError(
            f"{path}: one of {parts!r:.20} parts of a model; expected one file: join "
            "them first (gguf-split --merge)"
        )
    return GGUF(path, facts, {tensor.name: tensor for tensor in reader.tensors})


@functools.cache
def _reader() -> Any:
    """Return the package's reader, with every read checked."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ImportError(
            "GGUF files are read through the package gguf: pip install 'peftjax[text]'"
        ) from error

    class Checked(GGUFReader):
        reads = depth = 0

        def _get(self, offset, dtype, count=1, override_order=None):
            # A plain view: the map's own class costs as much as the read.
            self.data = np.asarray(self.data)
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if end > len(self.data):
                raise ValueError(
                    f"truncated: it has {len(self.data)} bytes and says that it goes "
                    f"on to byte {end}"
                )
            self.reads += 1
            if self.reads > MOST_READS:
                raise ValueError(f"more than {MOST_READS} values of metadata")
            return super()._get(offset, dtype, count, override_order)

        def _get_field_parts(self, orig_offs, raw_type):
            self.depth += 1
            if self.depth > DEEPEST + 1:
                raise ValueError("a list in a list in its metadata")
            try:
                return super()._get_field_parts(orig_offs, raw_type)
            finally:
                self.depth -= 1

    return Checked
