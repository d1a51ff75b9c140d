"""A SentencePiece model (`spm.model`) as a tokenizer of `tokenizers`.

DeBERTa-v2 and v3 come with such a file, and without a `tokenizer.json`.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftjax.data.errors import DataError, json_object, read_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Kinds of piece in the file's format.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_UNIGRAM = 1


def from_spm(file: Path) -> Tokenizer:
    """Return the tokenizer of DeBERTa with the pieces and rules of an `spm.model`.

    Texts become `[CLS] A [SEP]`, pairs `[CLS] A [SEP] B [SEP]` with type 1 from B on;
    `[MASK]` is the first id after the pieces, unless it is one of them. Text goes
    through the file's own normalisation, as in the original and in transformers 4;
    transformers 5 leaves it out.

    Raises:
        ImportError: `sentencepiece` or `protobuf` is absent or too old.
        DataError: the file is no whole SentencePiece model, not of the unigram kind,
            lacks `[CLS]` or `[SEP]`, or `tokenizer_config.json` beside it asks for what
            is not done here.
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
        raise DataError(f"{file}: expected DeBERTa's pieces, found no {absent[0]}")
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
        raise DataError(f"{file}: not a SentencePiece model ({error})") from error
    kind = model.trainer_spec.model_type
    if kind != _UNIGRAM or not model.pieces:
        raise DataError(
            f"{file}: expected a SentencePiece model of the unigram kind ({_UNIGRAM}), "
            f"found kind {kind} with {len(model.pieces)} pieces"
        )
    _check_whole(file, model)
    return model


def _check_whole(file: Path, model: Any) -> None:
    """Raise DataError for a file cut at a field, or two files one after the other.

    To the format both are files: fields may be absent, and repeated ones are joined.
    """
    unknown = [i for i, piece in enumerate(model.pieces) if piece.type == _UNKNOWN]
    pieces = Counter(piece.piece for piece in model.pieces)
    twice = [piece for piece, count in pieces.items() if count > 1]
    specs = [s for s in ("trainer_spec", "normalizer_spec") if not model.HasField(s)]
    scores = (piece.score for piece in model.pieces)
    reason = ""
    if specs:
        reason = f"found no {specs[0]}: the file is cut short"
    elif twice:
        reason = f"found the piece {twice[0]!r} twice"
    elif unknown != [model.trainer_spec.unk_id]:
        reason = (
            f"found unknown pieces at {unknown[:5]}, where the file says "
            f"{model.trainer_spec.unk_id}"
        )
    elif not all(map(math.isfinite, scores)):
        reason = "found scores that are not finite"
    if reason:
        raise DataError(f"{file}: expected a whole SentencePiece model, {reason}")


def _check_settings(file: Path) -> None:
    """Raise DataError where the settings ask for other steps than those above."""
    settings = json_object(file, read_text(file)) if file.exists() else {}
    for name in ("do_lower_case", "split_by_punct"):
        if settings.get(name):
            raise DataError(
                f"{file}: {name}: expected false, found {str(settings[name])[:80]}; "
                "save a tokenizer.json with transformers instead"
            )
