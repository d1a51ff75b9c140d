"""CLIP's tokenizer from `vocab.json` and `merges.txt`, as Stable Diffusion has it.

Byte pairs inside of words of lower case (Radford et al., arXiv 2103.00020, section
2.4); the last piece of a word ends in `</w>`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftjax import storage
from peftjax.data.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Parts of words that texts are cut into: endings, letters, a digit, all else.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def from_merges(file: Path) -> Tokenizer:
    """Return the tokenizer of a folder without `tokenizer.json`.

    Args:
        file: its `merges.txt`; `vocab.json` and `tokenizer_config.json` lie beside it.

    Raises:
        DataError: it is of another tokenizer than CLIP's, or a file is absent or
            damaged.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    kind = str(settings(file.parent).get("tokenizer_class"))
    if not kind.startswith("CLIPTokenizer"):
        raise DataError(
            f"{file}: byte pairs of {kind}; without a tokenizer.json only those of "
            "CLIPTokenizer are read: save the tokenizer with transformers, which adds "
            "the file"
        )
    vocabulary = _json(file.with_name("vocab.json"))
    for token in (BEGIN, END):
        if token not in vocabulary:
            raise DataError(f"{file.with_name('vocab.json')}: expected {token}")
    lines = file.read_text("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines if line and line[0] != "#"]
    if any(len(pair) != 2 for pair in merges):
        raise DataError(f"{file}: expected two pieces in every line but comments")
    ends = {token: vocabulary[token] for token in (BEGIN, END)}
    model: Any = models.BPE(
        vocab=vocabulary,
        merges=merges,  # pyright: ignore[reportArgumentType]
        end_of_word_suffix="</w>",
        unk_token=END,
    )
    made = Tokenizer(model)
    whole = (
        normalizers.NFC(),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Lowercase(),
    )
    made.normalizer = normalizers.Sequence([*whole])  # pyright: ignore[reportAttributeAccessIssue]
    cut = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([cut, as_bytes])  # pyright: ignore[reportAttributeAccessIssue]
    made.post_processor = TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{BEGIN} $A {END}", special_tokens=[*ends.items()]
    )
    made.add_special_tokens([*ends])
    return made


def settings(folder: Path) -> dict[str, Any]:
    """Return what `tokenizer_config.json` of a folder says; nothing without one.

    Raises:
        DataError: it is damaged.
    """
    file = folder / "tokenizer_config.json"
    return _json(storage.local(file)) if file.is_file() else {}


def padding(folder: Path) -> str:
    """Return the token that prompts are padded with: Stable Diffusion 2 has its own."""
    found = settings(folder).get("pad_token") or END
    return str(found["content"] if isinstance(found, dict) else found)


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: no whole JSON file ({error!s:.80})") from error
    if not isinstance(found, dict):
        raise DataError(f"{file}: expected a JSON object, found {type(found).__name__}")
    return found
