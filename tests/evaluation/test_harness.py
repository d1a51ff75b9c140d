"""A model in lm-evaluation-harness; more in `tests/references/check_lm_harness.py`."""

import json
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs peftjax[text]")

from peftjax.evaluation import answer, harness_model, score_choices
from peftjax.evaluation.choices import Row, score_rows
from peftjax.models import load
from tests.evaluation.test_choices import BUCKETS, questions
from tests.helpers.llm_case import tokenizer
from tests.helpers.model_cases import MODELS


@pytest.fixture(scope="module")
def llama():
    return load(MODELS / "llama3")


def requests(*arguments):
    return [SimpleNamespace(args=one) for one in arguments]


def test_without_the_harness_the_error_says_what_to_install(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(ImportError, match=r"pip install 'peftjax\[harness\]'"):
        harness_model(*llama, tokenizer(), eos=1)


def test_greedy_continuations_are_known_as_such(llama):
    model, variables = llama
    prompt = [3, 4, 5]
    logits = np.asarray(model.apply(variables, np.array([prompt])))[0, -1]
    best, second = np.argsort(-logits)[:2].tolist()
    ends = [([token], np.ones(1, bool)) for token in (best, second)]
    rows = [Row(prompt, ends), Row(prompt, ends[:1])]
    sums, greedy = score_rows(model, variables, rows, batch=2, buckets=(16,))
    assert greedy.tolist() == [[True, False], [True, False]]
    expected = np.asarray(jax.nn.log_softmax(logits))[[best, second]]
    np.testing.assert_allclose(sums[0], expected, atol=1e-5)
    assert sums[1, 1] == -np.inf


def test_the_harness_gets_the_numbers_of_score_choices_and_answer(llama):
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    options = {"batch": 2, "buckets": BUCKETS}
    examined = harness_model(*llama, tokenizer(), eos=1, **options)
    # The harness scores spaces at the end of a text with the choice.
    asked = [one for one in questions()[1] if one.text == one.text.rstrip()]
    ours = score_choices(*llama, tokenizer(), asked, **options)
    pairs = [(one.text, choice) for one in asked for choice in one.choices]
    found = examined.loglikelihood(requests(*pairs), disable_tqdm=True)
    sums = ours.sums[np.isfinite(ours.sums)]
    np.testing.assert_allclose([score for score, _ in found], sums, atol=1e-4)

    text = asked[0].text
    whole = score_rows(
        *llama,
        [Row([1], [(ids := tokenizer().encode(text).ids, np.ones(len(ids), bool))])],
        **options,
    )
    rolled = examined.loglikelihood_rolling(requests((text,)))
    np.testing.assert_allclose(rolled, whole[0][0], atol=1e-4)

    settings = {"until": ["a"], "max_gen_toks": 6, "do_sample": False}
    prompts = [one.text for one in asked]
    answers = examined.generate_until(requests(*((x, settings) for x in prompts)))
    told = {"steps": 6, "eos": 1, "stop": ("a",), **options}
    assert answers == answer(*llama, tokenizer(), prompts, **told)
    drawn = {**json.loads(json.dumps(settings)), "do_sample": True}
    with pytest.raises(ValueError, match="answers are greedy here"):
        examined.generate_until(requests((prompts[0], drawn)))
    with pytest.raises(ValueError, match="larger buckets"):
        examined.loglikelihood(requests(("a", " b" * 200)), disable_tqdm=True)
