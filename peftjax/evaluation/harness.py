"""A model as `lm-evaluation-harness` takes one, so that its tasks examine it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from peftjax.data.chat_template import ChatTemplate
from peftjax.evaluation.answers import answer
from peftjax.evaluation.batches import BUCKETS
from peftjax.evaluation.choices import Row, score_rows
from peftjax.models.families import is_seq2seq

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from peftjax.models.generate import LanguageModel

STEPS = 256  # of an answer, where a task names no number, as the harness has it
# What the harness's tasks call the same number.
_STEPS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


def harness_model(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    *,
    eos: int,
    template: ChatTemplate | None = None,
    batch: int = 4,
    buckets: Sequence[int] = BUCKETS,
    apply: Callable[..., Any] | None = None,
) -> Any:
    """Return a model for `lm_eval.simple_evaluate(model=...)`.

    Texts become tokens as the harness has it for its own models, but with the special
    tokens of the tokenizer's own file. What several choices of a question share is
    computed once, and continued through the cache. Answers are greedy; a task that
    draws is an error. A text before a choice that is too long loses its beginning.

    Args:
        model: a language model, as `generate` takes it.
        params: what `apply` takes first.
        tokenizer: the model's own.
        eos: the token that ends an answer, and stands before a text without context.
        template: for `apply_chat_template=True`; of `peftjax.data.chat_template`.
        batch: questions at a time.
        buckets: lengths that texts are padded to; each compiles once. The largest is
            the most that the model is shown.
        apply: as for `generate`; `model.apply` if absent.

    Raises:
        ImportError: `lm_eval` is absent.
        ValueError: the model reads a source apart from what it continues, as a T5 does.
    """
    if is_seq2seq(model):
        raise ValueError(
            f"harness_model: a {type(model).__name__} reads a source apart, expected a "
            "model of one text; score_choices and answer examine it"
        )
    try:
        from lm_eval.api.model import (  # pyright: ignore[reportMissingImports]
            TemplateLM,
        )
    except ImportError as error:
        raise ImportError(
            "lm-evaluation-harness is absent: pip install 'peftjax[harness]'"
        ) from error

    class PeftjaxLM(_Examined, TemplateLM):
        """The model as the harness's own class."""

    examined = PeftjaxLM()  # whose class has an `__init__` without arguments
    examined.of = model, params
    examined.tokens, examined.eos, examined.template = tokenizer, eos, template
    examined.options = {"batch": batch, "buckets": buckets, "apply": apply}
    return examined


class _Examined:
    """What the harness asks of a model."""

    of: tuple[Any, Any]
    tokens: Tokenizer
    eos: int
    template: ChatTemplate | None
    options: dict[str, Any]

    @property
    def eot_token_id(self) -> int:
        return self.eos

    @property
    def max_length(self) -> int:
        return self.options["buckets"][-1]

    @property
    def tokenizer_name(self) -> str:
        return self.template.where if self.template else ""

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        special = add_special_tokens is not False
        return self.tokens.encode(string, add_special_tokens=special).ids

    def chat_template(self, chat_template: bool | str = False) -> str:
        return self.template.text if self.template and chat_template else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        if self.template is None:
            raise ValueError("apply_chat_template: give harness_model a template")
        return self.template.render([chat_history], add_generation_prompt)[0]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Score continuations; those of one context, which follow each other, once."""
        rows: list[Row] = []
        places: list[tuple[int, int]] = []
        for _, context, end in requests:
            if len(end) > self.max_length:
                raise ValueError(
                    f"a continuation of {len(end)} tokens: expected at most "
                    f"{self.max_length}; give harness_model larger buckets"
                )
            context = context[-(self.max_length + 1 - len(end)) :]
            if not rows or rows[-1].shared != context:
                rows.append(Row(context, []))
            places.append((len(rows) - 1, len(rows[-1].ends)))
            rows[-1].ends.append((end, np.ones(len(end), bool)))
        sums, greedy = score_rows(*self.of, rows, **self.options)
        return [(float(sums[place]), bool(greedy[place])) for place in places]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Score whole texts, those that are too long window by window."""
        from lm_eval.utils import (  # pyright: ignore[reportMissingImports]
            get_rolling_token_windows,
            make_disjoint_window,
        )

        windows, numbers = [], []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for pair in get_rolling_token_windows(ids, self.eos, self.max_length, 1):
                windows.append((None, *make_disjoint_window(pair)))
                numbers.append(number)
        found = [0.0] * len(requests)
        for number, (score, _) in zip(numbers, self._loglikelihood_tokens(windows)):
            found[number] += score
        return found

    def generate_until(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[str]:
        """Answer prompts, those of like settings together."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            settings = json.dumps(request.args[1], sort_keys=True)
            groups.setdefault(settings, []).append(number)
        found = [""] * len(requests)
        for settings, numbers in groups.items():
            steps, stop = _greedy(json.loads(settings))
            prompts = [requests[number].args[0] for number in numbers]
            told = {"steps": steps, "eos": self.eos, "stop": stop, **self.options}
            answers = answer(*self.of, self.tokens, prompts, **told)
            for number, text in zip(numbers, answers):
                found[number] = text
        return found


def _greedy(settings: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Return the most steps and the stop texts of a task's settings.

    Raises:
        ValueError: the task draws its answers.
    """
    if settings.get("do_sample") and settings.get("temperature", 1.0) > 0:
        raise ValueError(
            f"generation_kwargs={dict(settings)}: answers are greedy here; expected "
            "do_sample: false"
        )
    until = settings.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    steps = [settings[name] for name in _STEPS if settings.get(name)]
    return int(steps[0]) if steps else STEPS, tuple(text for text in stop if text)
