"""Greedy answers: the torch side's tokens, cut where they end."""

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs peftjax[text]")

from peftjax.evaluation import answer, continued
from peftjax.models import load
from tests.helpers.llm_case import references, tokenizer
from tests.helpers.model_cases import MODELS

NO_END = 49  # no text of the model has it here


@pytest.fixture(scope="module")
def llama():
    return load(MODELS / "llama3")


def told(rows, tokens):
    return [tokens.decode(row["ids"]) for row in rows]


def test_answers_are_those_of_the_torch_side(llama):
    tokens, rows = tokenizer(), references()["answers"]
    asked = [row["prompt"] for row in rows]
    seen = []
    options = {"steps": 12, "batch": 2, "buckets": (32,), "watch": seen.append}
    found = answer(*llama, tokens, asked, eos=NO_END, **options)
    assert found == told(rows, tokens) and seen == [2, 3]
    # A token that ends an answer, and a text that does.
    first = rows[0]["ids"]
    ended = answer(*llama, tokens, asked, eos=first[2], **options)
    assert ended[0] == tokens.decode(first[:2])
    whole = found[0]
    stopped = answer(*llama, tokens, asked, eos=NO_END, stop=(whole[3],), **options)
    assert stopped[0] == whole[: whole.index(whole[3])] != whole


def test_tokens_come_in_chunks_and_no_more_than_are_asked_for(llama):
    tokens, rows = tokenizer(), references()["answers"]
    prompt = np.array([tokens.encode(rows[1]["prompt"]).ids])
    parts = list(
        continued(*llama, prompt, np.ones_like(prompt), steps=7, eos=NO_END, chunk=3)
    )
    assert [part.shape for part in parts] == [(1, 3), (1, 3), (1, 1)]
    assert np.concatenate(parts, 1)[0].tolist() == rows[1]["ids"][:7]


def test_an_empty_prompt_is_refused(llama):
    with pytest.raises(ValueError, match="at least one token"):
        answer(*llama, tokenizer(), [""], steps=1, eos=2)
