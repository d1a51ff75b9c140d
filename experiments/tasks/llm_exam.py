"""What a language model is examined by: GSM8K, MMLU or BBH."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import peftjax as pj
from experiments.arguments import known
from experiments.tasks import llm_data
from peftjax.data.errors import DataError
from peftjax.evaluation import Question, answer, bbh, gsm8k, mmlu, score_choices
from peftjax.models.families import is_seq2seq

METRICS = {"gsm8k": "exact_match", "mmlu": "accuracy", "bbh": "average"}
NOTES = {
    "gsm8k": "GSM8K test, zero-shot, greedy",
    "mmlu": "MMLU test, likelihood of the letter",
    "bbh": "BBH, likelihood of choices and exact answers",
}


def examine(
    config: Any, run: Any, adapters: Any, watch: Callable[[int], None] | None = None
) -> dict[str, float]:
    """Return the scores of `config.exam`, as fractions; none where it names none.

    Args:
        config: of the run; `exam.examples` of 0 are all, others the first.
        run: its model, base and plan.
        adapters: of the plan; None examines the base.
        watch: told after each batch how many of its questions are answered.
    """
    kind = config.exam.kind
    if not kind:
        return {}
    exam = {"gsm8k": _gsm8k, "mmlu": _mmlu, "bbh": _bbh}[known(kind, METRICS, "exam")]
    model, apply = run.outline.model, None
    params: Any = run.base
    if adapters is not None:
        params, apply = _adapted(run, adapters)
    own = llm_data.codec(
        str(llm_data.model_folder(config)), config.data.template, config.data.eos
    )
    examiner = Examiner(config, model, params, apply, own, watch)
    return exam(examiner, Path(config.paths.data))


def _adapted(run: Any, adapters: Any) -> tuple[Any, Any]:
    """Return merged weights, which cost what the base does, or how to do without."""
    peft = run.peft
    try:
        return peft.merge(run.base, adapters), None
    except pj.NotMergeable:

        def apply(both, *args, **kwargs):
            return peft.apply(*both, *args, **kwargs)

        return (run.base, adapters), apply


class Examiner:
    """A model that answers; one with an encoder does so exactly, not by choices."""

    def __init__(self, config, model, params, apply, own, watch):
        self.config, self.exam, self.own = config, config.exam, own
        self.seq2seq = is_seq2seq(model)
        shared = {"batch": config.exam.batch, "apply": apply, "watch": watch}
        model = model, params, own.tokenizer
        self.scores = functools.partial(score_choices, *model, **shared)
        self._answer = functools.partial(answer, *model, eos=own.eos, **shared)

    def prompts(self, questions: list[str]) -> list[str]:
        """Return questions as the model was taught to be asked."""
        chatty = self.config.data.template == "chat"
        rows = [{"instruction": question, "output": "a"} for question in questions]
        return [parts[0].text for parts in llm_data.parts(self.own, chatty, rows)]

    def answers(self, prompts: list[str], stop: tuple[str, ...] = ()) -> list[str]:
        """Return greedy answers of at most `exam.steps` tokens."""
        return self._answer(prompts, steps=self.exam.steps, stop=stop)


def _gsm8k(examiner: Examiner, folder: Path) -> dict[str, float]:
    problems = gsm8k.load(folder / "gsm8k" / "test.jsonl")
    problems = problems[: examiner.exam.examples or None]
    prompts = examiner.prompts([problem.question for problem in problems])
    right = gsm8k.exact_match(examiner.answers(prompts), problems)
    return {"exact_match": float(np.mean(right)), "problems": float(len(right))}


def _mmlu(examiner: Examiner, folder: Path) -> dict[str, float]:
    found: list[Question] = []
    for subject in mmlu.subjects(folder / "mmlu"):
        found += mmlu.load(folder / "mmlu", subject, examiner.exam.shots)
    if not found:
        raise DataError(f"{folder / 'mmlu'}: expected test/*_test.csv, found none")
    rows = np.random.default_rng(0).permutation(len(found))  # of all subjects
    chosen = [found[row] for row in rows[: examiner.exam.examples or None]]
    scores = examiner.scores(chosen)
    return {"accuracy": scores.accuracy(), "questions": float(len(chosen))}


def _bbh(examiner: Examiner, folder: Path) -> dict[str, float]:
    """Return the score of each task, and their average."""
    if examiner.config.data.kind == "bbh":  # what the run has not seen
        _, parts = llm_data.bbh_parts(examiner.config.data, str(folder))
    else:
        files = sorted((folder / "bbh").glob("*.json"))
        parts = {file.stem: bbh.load(file) for file in files}
    found = {name: _bbh_task(examiner, part) for name, part in parts.items() if part}
    if not found:
        raise DataError(f"{folder / 'bbh'}: expected *.json, found none")
    return {"average": float(np.mean([*found.values()])), **found}


def _bbh_task(examiner: Examiner, examples: list[bbh.Example]) -> float:
    shots, most = examiner.exam.shots, examiner.exam.examples
    try:
        questions = bbh.questions(examples, shots)[: most or None]
    except DataError:  # answers that are no choices
        questions = []
    if questions and not examiner.seq2seq:
        return examiner.scores(questions).accuracy()
    asked = bbh.prompts(examples, shots)[: most or None]
    told = examiner.answers([text for text, _ in asked], ("\n", "Q:"))
    right = [bbh.matches(a, one.target) for a, (_, one) in zip(told, asked)]
    return float(np.mean(right))
