"""Choices by likelihood: equal to the torch side's, however they are batched."""

import jax
import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs peftjax[text]")

import peftjax as pj
from peftjax.data.chat import Part, encode
from peftjax.evaluation import Question, harness_model, score_choices, token_loss
from peftjax.models import load
from tests.helpers.llm_case import references, tokenizer
from tests.helpers.model_cases import MODELS, close

BUCKETS = (16, 64)


@pytest.fixture(scope="module")
def llama():
    return load(MODELS / "llama3")


def questions():
    found = references()["questions"]
    return found, [
        Question(one["text"], tuple(one["choices"]), one["answer"]) for one in found
    ]


def test_scores_are_those_of_the_torch_side(llama):
    expected, asked = questions()
    seen, options = [], {"batch": 2, "buckets": BUCKETS}
    scores = score_choices(*llama, tokenizer(), asked, watch=seen.append, **options)
    assert seen[-1] == len(asked) and seen == sorted({*seen})
    for row, one in enumerate(expected):
        k = len(one["choices"])
        np.testing.assert_allclose(scores.sums[row, :k], one["sums"], atol=1e-4)
        np.testing.assert_array_equal(scores.tokens[row, :k], one["tokens"])
        assert (scores.sums[row, k:] == -np.inf).all()
        sums, tokens = (np.array(one[name]) for name in ("sums", "tokens"))
        sizes = np.array([len(choice) for choice in one["choices"]])
        np.testing.assert_allclose(scores.of("mean")[row, :k], sums / tokens, atol=1e-4)
        np.testing.assert_allclose(scores.of("bytes")[row, :k], sums / sizes, atol=1e-4)
    right = [np.argmax(one["sums"]) == one["answer"] for one in expected]
    assert scores.accuracy() == np.mean(right)
    with pytest.raises(ValueError, match="norm='max'"):
        scores.of("max")


def test_adapters_are_scored_like_the_merged_model(llama):
    model, variables = llama
    _, asked = questions()
    rules = {r".*/(q|v|down)_proj/kernel": pj.LoRA(rank=2, alpha=3.0)}
    peft = pj.adapt(model.apply, variables, np.ones((1, 4), np.int32), rules=rules)
    adapters = jax.tree.map(lambda a: a + 0.2, peft.init(jax.random.key(0)))

    def apply(both, *args, **kwargs):
        return peft.apply(*both, *args, **kwargs)

    options = {"batch": 4, "buckets": (64,)}
    both = variables, adapters
    adapted = score_choices(model, both, tokenizer(), asked, apply=apply, **options)
    merged = peft.merge(variables, adapters)
    plain = score_choices(model, merged, tokenizer(), asked, **options)
    np.testing.assert_allclose(adapted.sums, plain.sums, atol=2e-3)
    expected = [one["sums"][0] for one in references()["questions"]]
    assert np.abs(plain.sums[:, 0] - expected).max() > 0.1


def test_questions_that_are_none():
    for bad in (Question("a", (" b",)), Question("", ("a", "b"))):
        with pytest.raises(ValueError, match="at least two choices"):
            score_choices(None, None, tokenizer(), [bad])
    with pytest.raises(ValueError, match="expected an answer"):
        from peftjax.evaluation import Scores

        one = np.ones((1, 2))
        Scores(one, one, one, np.array([-1])).accuracy()


def test_the_loss_of_tokens_is_that_of_choices(llama):
    _, asked = questions()
    one = asked[0]
    tokens = tokenizer()
    rows = [[Part(one.text), Part(choice, True)] for choice in one.choices]
    found = token_loss(*llama, encode(tokens, rows, 64), batch=2, buckets=(16, 64))
    scores = score_choices(*llama, tokens, [one], batch=1, buckets=(16,))
    assert found.tokens == scores.tokens.sum()
    assert found.loss == pytest.approx(-scores.sums.sum() / found.tokens, abs=1e-4)
    assert found.perplexity == pytest.approx(np.exp(found.loss))


def test_a_t5_reads_the_text_and_writes_the_choice():
    model, variables = load(MODELS / "flan_t5", scan_layers=True)
    tokens = tokenizer()
    asked = [
        Question("the cat sat", (" on a mat.", " at", "s there")),
        Question("a", ("b", "cd")),
    ]
    scores = score_choices(model, variables, tokens, asked, buckets=BUCKETS)
    run = jax.jit(model.apply)
    for row, question in enumerate(asked):
        source = np.array([tokens.encode(question.text).ids])
        for column, choice in enumerate(question.choices):
            end = tokens.encode(choice).ids
            logits = run(variables, source, None, np.array([[0, *end[:-1]]]))
            expected = np.take_along_axis(
                np.asarray(jax.nn.log_softmax(logits[0])), np.array(end)[:, None], 1
            )
            close(scores.sums[row, column], expected.sum())
            assert scores.tokens[row, column] == len(end)
    with pytest.raises(ValueError, match="a T5 reads a source apart"):
        harness_model(model, variables, tokens, eos=2)
