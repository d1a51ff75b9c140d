"""Instructions and conversations as rows of tokens, of which some are learned.

An example is a list of parts, texts that are learned or only read. The templates of the
papers, and the chat template of a tokenizer's own file (`peftjax.data.chat_template`),
make parts; `encode` makes tokens of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from peftjax.data.errors import DataError
from peftjax.data.ragged import Ragged

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Part(NamedTuple):
    """A piece of text; `learned`: its tokens are targets of the loss."""

    text: str
    learned: bool = False


Parts = Sequence[Part]
BEGIN = (
    "Below is an instruction that describes a task{}. Write a response that "
    "appropriately completes the request.\n\n### Instruction:\n{}\n\n"
)
WITH_INPUT = ", paired with an input that provides further context"


def hydralora(row: Mapping[str, str], eos: str) -> list[Part]:
    r"""Return the text of HydraLoRA's code (arXiv 2404.19245).

    Instruction, and input on a line of its own, end with the token `eos`, and so does
    the output, which alone is learned. They cut at 1,024 tokens.

    >>> hydralora({"instruction": "Add.", "input": "1 2", "output": "3"}, "</s>")
    [Part(text='Add.\n1 2</s>', learned=False), Part(text='3</s>', learned=True)]
    """
    asked = row["instruction"] + (f"\n{row['input']}" if row.get("input") else "")
    return [Part(asked + eos), Part(row["output"] + eos, True)]


def alpaca(row: Mapping[str, str], eos: str) -> list[Part]:
    r"""Return the text of HRA's code, Alpaca's (arXiv 2405.17484).

    The output and the token `eos` are learned. They cut at 512 tokens. Prompt and
    output are tokenised apart, so that no token is of both; there they are not.

    >>> [part.text[-15:] for part in alpaca({"instruction": "1+2", "output": "3"}, "$")]
    ['\n\n### Response:', '3$']
    """
    given = row.get("input")
    asked = BEGIN.format(WITH_INPUT if given else "", row["instruction"])
    asked += f"### Input:\n{given}\n\n" if given else ""
    return [Part(asked + "### Response:"), Part(row["output"] + eos, True)]


def question(row: Mapping[str, str], eos: str) -> list[Part]:
    r"""Return a question and its answer, as BBH's prompts have them.

    >>> question({"instruction": "1 or 2?", "output": "2"}, "</s>")
    [Part(text='Q: 1 or 2?\nA:', learned=False), Part(text=' 2</s>', learned=True)]
    """
    return [Part(f"Q: {row['instruction']}\nA:"), Part(f" {row['output']}{eos}", True)]


def source(row: Mapping[str, str], eos: str) -> list[Part]:
    r"""Return the same for an encoder and a decoder, whose texts both end with `eos`.

    >>> source({"instruction": "1 or 2?", "output": "2"}, "</s>")
    [Part(text='Q: 1 or 2?\nA:</s>', learned=False), Part(text='2</s>', learned=True)]
    """
    asked, _ = question(row, eos)
    return [Part(asked.text + eos), Part(row["output"] + eos, True)]


TEMPLATES = {
    "hydralora": hydralora,
    "alpaca": alpaca,
    "question": question,
    "source": source,
}


@dataclass(frozen=True)
class Chats:
    """Token rows one after the other.

    Attributes:
        ids: `[T]`, int32.
        learned: `[T]`, int8, 1 on targets of the loss; never the first of a row.
        starts: `[N + 1]`, int64; row i is `ids[starts[i]:starts[i + 1]]`.
        rows: `[N]`, int64: which of the examples given each is.
        long: how many examples were longer than the limit.
        dropped: how many examples are left out.
    """

    ids: np.ndarray
    learned: np.ndarray
    starts: np.ndarray
    rows: np.ndarray
    long: int
    dropped: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, `[N]`."""
        return np.diff(self.starts)

    def columns(self, pad: int, buckets: Sequence[int]) -> dict[str, Ragged]:
        """Return `input_ids`, `segment_ids` and `token_mask` for the data pipeline."""
        ones = np.broadcast_to(np.int8(1), self.ids.shape)
        return {
            "input_ids": Ragged(self.ids, self.starts, pad, buckets),
            "segment_ids": Ragged(ones, self.starts, 0, buckets),
            "token_mask": Ragged(self.learned, self.starts, 0, buckets),
        }


def encode(
    tokenizer: Tokenizer,
    examples: Iterable[Parts],
    max_length: int,
    *,
    longer: Literal["cut", "drop"] = "cut",
) -> Chats:
    """Tokenise examples, each part by itself.

    What the tokenizer's file puts before a text (`<s>` of Llama) stands before the
    first part; what it puts behind one is not added, since templates end texts
    themselves. A row without a token to learn is left out.

    Args:
        tokenizer: of `peftjax.data.tokenizer.load_tokenizer`.
        examples: parts of each.
        max_length: tokens of a row.
        longer: of rows that are longer, keep the first `max_length` tokens, or leave
            them out.

    Raises:
        DataError: there is nothing to learn in any example.
        ValueError: `max_length` or `longer` is none.
    """
    if max_length < 2 or longer not in ("cut", "drop"):
        raise ValueError(
            f"max_length={max_length}, longer={longer!r}: expected at least 2, and "
            "'cut' or 'drop'"
        )
    ids: list[np.ndarray] = []
    learned: list[np.ndarray] = []
    rows, long, count = [], 0, 0
    first = _before(tokenizer)
    for count, parts in enumerate(examples, start=1):
        texts = [part.text for part in parts]
        found = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        tokens, marks = list(first), [False] * len(first)
        for part, own in zip(parts, found):
            tokens += own.ids
            marks += [part.learned] * len(own.ids)
        long += len(tokens) > max_length
        if len(tokens) > max_length and longer == "drop":
            continue
        mark = np.array(marks[:max_length], np.int8)
        mark[:1] = 0  # nothing stands before it
        if mark.any():
            rows.append(count - 1)
            ids.append(np.array(tokens[:max_length], np.int32))
            learned.append(mark)
    if not rows:
        raise DataError(
            f"none of {count} examples has a token to learn within {max_length} "
            f"tokens ({long} are longer): expected a template that marks some, or a "
            "larger max_length"
        )
    return Chats(
        np.concatenate(ids),
        np.concatenate(learned),
        np.concatenate([[0], np.cumsum([len(row) for row in ids])]),
        np.array(rows),
        long,
        count - len(rows),
    )


def shown(tokenizer: Tokenizer, ids: Sequence[int], learned: Sequence[int]) -> str:
    """Return a line for each token: `+` where it is learned, its number, its text."""
    lines = [
        f"{'+' if mark else ' '} {token:6d} {tokenizer.decode([token], False)!r}"
        for token, mark in zip(map(int, ids), learned)
    ]
    return "\n".join(lines)


def _before(tokenizer: Tokenizer) -> list[int]:
    """Return what the tokenizer's file puts before a text."""
    whole = tokenizer.encode("a")
    special: list[Any] = whole.special_tokens_mask
    return whole.ids[: special.index(0)] if 0 in special else []
