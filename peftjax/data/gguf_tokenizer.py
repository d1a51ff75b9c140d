"""The tokenizer and the chat template that a GGUF file holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftjax.data.errors import DataError
from peftjax.data.gguf_file import GGUF

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONTROL, _USER = 3, 4  # kinds of token
# How texts are cut before merging, by `tokenizer.ggml.pre`; None: as GPT-2 does.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS = {
    "gpt-2": None,
    "smollm": r"\p{N}",
    "llama-bpe": _WORDS % "{1,3}",
    "qwen2": _WORDS % "",
}


def from_gguf(file: GGUF) -> Tokenizer:
    """Return the byte-level BPE tokenizer of a file.

    Raises:
        DataError: it has none, one of another kind, or lists that do not fit.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        normalizers,
        pre_tokenizers,
    )
    from tokenizers.models import BPE

    kind, cut = (file.facts.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if kind != "gpt2" or cut not in _CUTS:
        raise DataError(
            f"{file.path}: a tokenizer of the kind {kind!r:.40}, {cut!r:.40}; expected "
            f"'gpt2' with one of {', '.join(_CUTS)}: put the model's tokenizer.json "
            "beside the file"
        )
    tokens, merges = _texts(file, "tokens"), _texts(file, "merges")
    kinds = file.facts.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    pairs: list[Any] = [tuple(merge.split(" ")) for merge in merges]
    if len(set(tokens)) != len(tokens) or len(kinds) != len(tokens):
        raise DataError(f"{file.path}: tokenizer.ggml.tokens: expected one kind each")
    if any(len(pair) != 2 for pair in pairs):
        raise DataError(f"{file.path}: tokenizer.ggml.merges: expected pairs")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocabulary, pairs, ignore_merges=cut == "llama-bpe"))
    behaviour, own = "isolated", _CUTS[cut]
    steps: list[Any] = [pre_tokenizers.Split(Regex(own), behaviour)] if own else []
    # With a pattern for words a file does without GPT-2's; SmolLM takes both.
    gpt2 = cut in ("gpt-2", "smollm")
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2))
    if cut == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    for token, number in zip(tokens, kinds):
        if number in (_CONTROL, _USER):
            special = number == _CONTROL
            added = AddedToken(token, normalized=False, special=special)
            (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])
    return tokenizer


def _texts(file: GGUF, name: str) -> list[str]:
    found = file.facts.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        raise DataError(f"{file.path}: tokenizer.ggml.{name}: expected texts")
    return found
