"""The log-likelihood of choices after a text, which is read once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.evaluation.batches import BUCKETS, bucket, like_length, padded_left
from peftjax.models.families import is_seq2seq

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from peftjax.models.generate import LanguageModel

Norm = Literal["sum", "mean", "bytes"]
_ENDS = (1, 2, 4, 8, *BUCKETS)


class Question(NamedTuple):
    """A text and what may follow it; spaces between them belong to the choices.

    Attributes:
        text: the question, and examples before it.
        choices: two or more.
        answer: the number of the right one, -1 where it is not known.
    """

    text: str
    choices: tuple[str, ...]
    answer: int = -1


@dataclass(frozen=True)
class Scores:
    """Log-likelihoods of all choices of N questions; a missing choice is -inf.

    Attributes:
        sums: `[N, k]`, float64, over the tokens of a choice.
        tokens: `[N, k]`, of each choice.
        bytes: `[N, k]`, of each choice in UTF-8.
        answers: `[N]`.
    """

    sums: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    answers: np.ndarray

    def of(self, norm: Norm = "sum") -> np.ndarray:
        """Return the scores `[N, k]`: sums, or means over tokens or bytes."""
        if norm not in ("sum", "mean", "bytes"):
            raise ValueError(f"norm={norm!r}: expected sum, mean or bytes")
        by = {"sum": 1, "mean": self.tokens, "bytes": self.bytes}[norm]
        return self.sums / np.maximum(by, 1)

    def accuracy(self, norm: Norm = "sum") -> float:
        """Return the share of questions whose right choice scores highest.

        Raises:
            ValueError: an answer is not known.
        """
        if (self.answers < 0).any():
            raise ValueError("accuracy: expected an answer of every question")
        return float((self.of(norm).argmax(1) == self.answers).mean())


def score_choices(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    batch: int = 4,
    buckets: Sequence[int] = BUCKETS,
    apply: Callable[..., Any] | None = None,
    watch: Callable[[int], None] | None = None,
) -> Scores:
    """Score the choices of questions.

    Text and choice are tokenised as one; the tokens that all choices of a question
    share are computed once, and continued through the cache. Where the border falls
    within a token, that token belongs to the choice. For an encoder and a decoder the
    two are tokenised apart, each with what the tokenizer's file puts behind a text, and
    all tokens of a choice are scored.

    Args:
        model: a language model, as `generate` takes it.
        params: what `apply` takes first.
        tokenizer: the model's own.
        questions: with any number of choices.
        batch: questions at a time.
        buckets: lengths that texts are padded to; each compiles once.
        apply: as for `generate`; `model.apply` if absent.
        watch: told after each batch how many questions are scored.

    Raises:
        ValueError: a question has no text, or fewer than two choices.
    """
    split = _apart if is_seq2seq(model) else _split
    rows = [split(tokenizer, question) for question in questions]
    sums, _ = score_rows(
        model, params, rows, batch=batch, buckets=buckets, apply=apply, watch=watch
    )
    tokens, sizes = np.zeros(sums.shape, np.int64), np.zeros(sums.shape, np.int64)
    for number, (row, question) in enumerate(zip(rows, questions)):
        k = len(question.choices)
        tokens[number, :k] = [weights.sum() for _, weights in row.ends]
        sizes[number, :k] = [len(choice.encode()) for choice in question.choices]
    answers = np.array([question.answer for question in questions], np.int64)
    return Scores(sums, tokens, sizes, answers)


class Row(NamedTuple):
    """Tokens, and what may follow them.

    Attributes:
        shared: one token or more.
        ends: of each continuation its tokens, and which of them are scored.
    """

    shared: list[int]
    ends: list[tuple[list[int], np.ndarray]]


def score_rows(
    model: LanguageModel,
    params: Any,
    rows: Sequence[Row],
    *,
    batch: int = 4,
    buckets: Sequence[int] = BUCKETS,
    apply: Callable[..., Any] | None = None,
    watch: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Score continuations of tokens; `score_choices` does it with texts.

    Args:
        model: as for `score_choices`.
        params: as for `score_choices`.
        rows: N of them, with any number of continuations, k at most.
        batch: rows at a time.
        buckets: as for `score_choices`.
        apply: as for `score_choices`.
        watch: as for `score_choices`, of rows.

    Returns:
        Log-likelihoods `[N, k]`, float64, -inf where there is no continuation; and
        whether each is what greedy decoding gives, `[N, k]`.
    """
    most = max((len(row.ends) for row in rows), default=0)
    sums = np.full((len(rows), most), -np.inf)
    greedy, done = np.zeros(sums.shape, bool), 0
    for length, part in like_length([len(row.shared) for row in rows], batch, buckets):
        shared, mask = padded_left([rows[i].shared for i in part], length)
        longest = max(len(end) for i in part for end, _ in rows[i].ends)
        ends, weights = _ends([rows[i] for i in part], most, bucket(longest, _ENDS))
        run = apply or model.apply
        found = _score(run, model, params, shared, mask, ends, weights)
        for number, *own in zip(part, *map(np.asarray, found)):
            k = len(rows[number].ends)
            sums[number, :k], greedy[number, :k] = own[0][:k], own[1][:k]
        done += len(part)
        if watch is not None:
            watch(done)
    return sums, greedy


def _check(question: Question) -> None:
    if len(question.choices) < 2 or not question.text:
        raise ValueError(
            f"{question!r:.80}: expected a text and at least two choices after it"
        )


def _apart(tokenizer: Tokenizer, question: Question) -> Row:
    _check(question)
    ends = [tokenizer.encode(choice).ids for choice in question.choices]
    text = tokenizer.encode(question.text).ids
    return Row(text, [(end, np.ones(len(end), bool)) for end in ends])


def _split(tokenizer: Tokenizer, question: Question) -> Row:
    _check(question)
    text = tokenizer.encode(question.text).ids
    wholes = [tokenizer.encode(question.text + c).ids for c in question.choices]
    columns = zip(text, *wholes)
    same = len([*takewhile(lambda column: len(set(column)) == 1, columns)])
    # Each choice has a token of its own, and something stands before it.
    same = min(same, *(len(whole) - 1 for whole in wholes))
    if same < 1:
        raise ValueError(f"{question.text!r:.80}: expected a longer text")
    borders = [min(len(text), len(whole) - 1) for whole in wholes]
    scored = [np.arange(same, len(w)) >= b for w, b in zip(wholes, borders)]
    return Row(text[:same], [(w[same:], s) for w, s in zip(wholes, scored)])


def _ends(rows: Sequence[Row], most: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and weights `[rows, choices, length]`, padded on the right."""
    ids = np.zeros((len(rows), most, length), np.int32)
    weights = np.zeros((len(rows), most, length), np.float32)
    for row, own in enumerate(rows):
        for choice, (end, scored) in enumerate(own.ends):
            ids[row, choice, : len(end)] = end
            weights[row, choice, : len(end)] = scored
    return ids, weights


@partial(jax.jit, static_argnums=(0, 1))
def _score(apply, model, params, shared, mask, ends, weights):
    rows, choices, length = ends.shape
    cache = model.empty_cache(rows, shared.shape[1] + length)
    before, cache = apply(params, shared, mask, cache=cache)
    before = jnp.repeat(before[:, -1:], choices, axis=0)
    ends, weights = (part.reshape(-1, length) for part in (ends, weights))
    if length > 1:
        # What stands behind a choice is seen by nothing that is scored.
        after, _ = apply(params, ends[:, :-1], cache=cache.repeated(choices))
        before = jnp.concatenate([before, after], axis=1)
    chosen = jnp.take_along_axis(before, ends[..., None], axis=2)[..., 0]
    found = (chosen - jax.nn.logsumexp(before, axis=2)) * weights
    likeliest = (jnp.argmax(before, axis=2) == ends) | (weights == 0)
    return tuple(x.reshape(rows, choices) for x in (found.sum(1), likeliest.all(1)))
