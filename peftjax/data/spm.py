"""A SentencePiece model (`spm.model`) as a tokenizer of `tokenizers`.

DeBERTa-v2 and v3 come with such a file, and without a `tokenizer.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Kinds of piece in the file's format.
_CONTROL, _USER_DEFINED = 3, 4
_UNIGRAM = 1


def from_spm(file: Path) -> Tokenizer:
    """Return the tokenizer of DeBERTa with the pieces and rules of an `spm.model`.

    Texts become `[CLS] A [SEP]`, pairs `[CLS] A [SEP] B [SEP]` with type 1 from B on;
    `[MASK]` is the first id after the pieces, unless it is one of them. Text goes
    through the file's own normalisation, as in the original and in transformers 4;
    transformers 5 leaves it out.

    Raises:
        ImportError: `sentencepiece` or `protobuf` is absent or too old.
        ValueError: the file is no SentencePiece model, not of the unigram kind, lacks
            `[CLS]` or `[SEP]`, or `tokenizer_config.json` beside it asks for what is
            not done here.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers, processors
    from tokenizers.models import Unigram
    from tokenizers.pre_tokenizers import Metaspace

    model = _parsed(file)
    _check_settings(file.parent / "tokenizer_config.json")
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    tokenizer = Tokenizer(Unigram(pieces, model.trainer_spec.unk_id, False))
    steps: list[Any] = [normalizers.Strip()]
    if charsmap := model.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(charsmap))
    steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="always")
    own = [p for p in model.pieces if p.type in (_CONTROL, _USER_DEFINED)]
    for piece in own:
        special = piece.type == _CONTROL
        token = AddedToken(piece.piece, normalized=False, special=special)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    tokenizer.add_special_tokens(["[MASK]"])
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    if absent := [name for name, found in ends if found is None]:
        raise ValueError(f"{file}: expected DeBERTa's pieces, found no {absent[0]}")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=ends,
    )
    return tokenizer


def _parsed(file: Path) -> Any:
    try:
        from sentencepiece import sentencepiece_model_pb2
    except Exception as error:
        raise ImportError(
            f"{file}: reading it needs sentencepiece and a protobuf that fits it: "
            f"pip install -U 'peftjax[text]' ({error})"
        ) from error
    model: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        model.ParseFromString(file.read_bytes())
    except Exception as error:
        raise ValueError(f"{file}: not a SentencePiece model ({error})") from error
    kind = model.trainer_spec.model_type
    if kind != _UNIGRAM or not model.pieces:
        raise ValueError(
            f"{file}: expected a SentencePiece model of the unigram kind ({_UNIGRAM}), "
            f"found kind {kind} with {len(model.pieces)} pieces"
        )
    return model


def _check_settings(file: Path) -> None:
    """Raise ValueError where the settings ask for other steps than those above."""
    try:
        settings = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        settings = dict(settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: expected a JSON object ({error})") from error
    for name in ("do_lower_case", "split_by_punct"):
        if settings.get(name):
            raise ValueError(
                f"{file}: {name}: expected false, found {settings[name]!r}; save a "
                "tokenizer.json with transformers instead"
            )
