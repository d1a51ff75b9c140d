"""A model's own tokenizer, and text turned into padded columns with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from peftjax import storage
from peftjax.data.clip_tokenizer import from_merges
from peftjax.data.errors import DataError
from peftjax.data.gguf_file import open_gguf
from peftjax.data.gguf_tokenizer import from_gguf
from peftjax.data.ragged import Ragged
from peftjax.data.spm import from_spm
from peftjax.errors import brief

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BUCKETS = (16, 32, 64, 128, 256, 512)
_FILES = ("tokenizer.json", "spm.model", "merges.txt")
# What a file's rules make of a pair is only known when one is tokenised.
_PROBE = ("The cat, naïve: 3 × 四!", " a  dog\n")
_PADS = ("[PAD]", "<pad>", "<|endoftext|>")


class Tokens(NamedTuple):
    """Token rows one after the other.

    Attributes:
        ids: `[T]`, int32.
        types: `[T]`, int8; 1 on the second text of a pair, as the model's file says.
        starts: `[N + 1]`, int64; row i is `ids[starts[i]:starts[i + 1]]`.
    """

    ids: np.ndarray
    types: np.ndarray
    starts: np.ndarray


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a tokenizer.

    Args:
        path: `tokenizer.json`, DeBERTa's `spm.model`, CLIP's `merges.txt` beside its
            `vocab.json`, a GGUF file, or the folder of the model that holds one of
            them; of several, the first. Beside a GGUF file a
            `tokenizer.json` goes before the file's own.

    Raises:
        ImportError: `tokenizers` is absent, or what `spm.model` needs.
        FileNotFoundError: there is no such file.
        DataError: the file is no tokenizer, or fails on text.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError(
            "tokenising needs tokenizers: pip install 'peftjax[text]'"
        ) from error
    file = tokenizer_file(path)
    with _naming(file):
        match file.suffix:
            case ".model":
                tokenizer = from_spm(file)
            case ".txt":
                storage.mirrored(file.parent, "vocab.json")
                tokenizer = from_merges(file)
            case ".gguf":
                tokenizer = from_gguf(open_gguf(file))
            case _:
                tokenizer = Tokenizer.from_file(str(file))
        # Lengths belong to the caller, not to what the file was last used with.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode(*_PROBE)
    return tokenizer


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Name the file in whatever its reader raises."""
    try:
        yield
    except (DataError, ImportError, KeyboardInterrupt, SystemExit):
        raise
    # A panic of the Rust library is no Exception.
    except BaseException as error:
        raise DataError(
            f"{file}: not a whole tokenizer file ({brief(error)})"
        ) from error


def tokenizer_file(path: str | os.PathLike[str]) -> Path:
    """Return the file of a folder that holds the tokenizer, or the file itself."""
    file = storage.path(path)
    if file.suffix == ".gguf" and (beside := file.parent / _FILES[0]).is_file():
        return storage.local(beside)
    if file.is_dir():
        found = [file / name for name in _FILES if (file / name).is_file()]
        found += sorted(file.glob("*.gguf"))
        file = found[0] if found else file / _FILES[0]
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such file; expected the tokenizer.json of the model, its "
            "spm.model or a .gguf file"
        )
    storage.mirrored(file.parent, "tokenizer_config.json")  # is looked for beside it
    return storage.local(file)


def pad_id(tokenizer: Tokenizer) -> int:
    """Return the id that rows are padded with.

    Raises:
        ValueError: the tokenizer has none of the usual padding tokens.
    """
    for token in _PADS:
        found = tokenizer.token_to_id(token)
        if found is not None:
            return found
    raise ValueError(
        f"the tokenizer has no padding token: expected one of {', '.join(_PADS)}"
    )


def encode(
    tokenizer: Tokenizer, texts: Sequence[Sequence[str]], max_length: int
) -> Tokens:
    """Tokenise single texts or pairs, with the special tokens the file asks for.

    Args:
        tokenizer: of `load_tokenizer`.
        texts: one list of N texts, or two lists of N for pairs.
        max_length: rows are cut to it, special tokens included; of a pair the longer
            text is cut first.

    Raises:
        ValueError: not one or two lists of one length, or `max_length` leaves no room
            for text.
    """
    if len(texts) not in (1, 2) or len({len(column) for column in texts}) != 1:
        raise ValueError(
            "texts: expected one list, or two lists of one length, found lengths "
            f"{[len(column) for column in texts]}"
        )
    special = tokenizer.num_special_tokens_to_add(is_pair=len(texts) == 2)
    if max_length < special + len(texts):
        raise ValueError(
            f"max_length={max_length}: expected at least {special + len(texts)}, since "
            f"the tokenizer adds {special} tokens"
        )
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    try:
        rows = tokenizer.encode_batch_fast(
            list(texts[0]) if len(texts) == 1 else list(zip(*texts, strict=True))
        )
    finally:
        tokenizer.no_truncation()
    lengths = [len(row) for row in rows]
    return Tokens(
        np.fromiter(chain.from_iterable(row.ids for row in rows), np.int32),
        np.fromiter(chain.from_iterable(row.type_ids for row in rows), np.int8),
        np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
    )


def columns(
    tokens: Tokens, pad: int, buckets: Sequence[int] = BUCKETS
) -> dict[str, Ragged]:
    """Return what a text model reads, as columns for `peftjax.data.pipeline`.

    Args:
        tokens: N rows of `encode`.
        pad: id of the padding token.
        buckets: the lengths that batches may have. Padding never decides which examples
            form a batch.

    Returns:
        `input_ids`, `attention_mask`, `token_type_ids`, each of length N; a batch of
        them is `[B, L]`, int32.
    """
    ones = np.broadcast_to(np.int8(1), tokens.ids.shape)
    return {
        "input_ids": Ragged(tokens.ids, tokens.starts, pad, buckets),
        "attention_mask": Ragged(ones, tokens.starts, 0, buckets),
        "token_type_ids": Ragged(tokens.types, tokens.starts, 0, buckets),
    }
