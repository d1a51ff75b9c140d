"""Show that `lm-evaluation-harness` and `peftjax.evaluation` agree on a model.

    pip install 'peftjax[harness]'
    python tests/references/check_lm_harness.py MODEL LLM [QUESTIONS [PROBLEMS]]

MODEL is a language model as `peftjax.models.load` takes it, with its tokenizer; LLM is
a folder with `mmlu` and `gsm8k` as their authors have them. Three tasks are written
for the harness over these files: choices of MMLU, answers to GSM8K, and the likelihood
of its problems as texts. `simple_evaluate` runs them on `harness_model`; beside it the
same questions, built by `peftjax.evaluation` alone, are scored by it. No network is
needed. An exit status of 1 says that they do not agree.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}

from peftjax.data.tokenizer import load_tokenizer
from peftjax.evaluation import answer, gsm8k, harness_model, mmlu, score_choices
from peftjax.models import load

SUBJECT = "anatomy"
STEPS = 96  # tokens of an answer
BUCKETS = (128, 256, 512, 1024)
OPTIONS = {"batch": 4, "buckets": BUCKETS}
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
num_fewshot: 0
metadata:
  version: 1
"""
MMLU = """output_type: multiple_choice
description: "The following are multiple choice questions about {subject}.\\n\\n"
doc_to_text: "{{{{question.strip()}}}}\\nA. {{{{choices[0]}}}}\\n\\
  B. {{{{choices[1]}}}}\\nC. {{{{choices[2]}}}}\\nD. {{{{choices[3]}}}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list:
  - metric: acc
"""
GSM8K = """output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{number}}}}"
generation_kwargs:
  until: ["Question:"]
  max_gen_toks: {steps}
  do_sample: false
metric_list:
  - metric: exact_match
    regexes_to_ignore: [",", "\\\\$", "\\\\.$"]
filter_list:
  - name: flexible-extract
    filter:
      - function: regex
        group_select: -1
        regex_pattern: "(-?[$0-9.,]{{2,}})|(-?[0-9]+)"
      - function: take_first
"""
TEXTS = """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - metric: byte_perplexity
"""


def write(folder, name, task, rows, **settings):
    """Leave a task and its data in a folder."""
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = TASK.format(name=name, file=file) + task.format(**settings)
    (folder / f"{name}.yaml").write_text(text)


def evaluated(folder, model):
    """Return the harness's results and samples of all tasks of a folder."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    names = sorted(file.stem for file in folder.glob("*.yaml"))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(model, tasks=names, task_manager=manager, bootstrap_iters=0)
    print(make_table(found))
    return found["results"], found["samples"]


def main(where, llm, questions="24", problems="8"):
    """Compare; return whether all agrees."""
    model, variables = load(where)
    tokenizer, llm = load_tokenizer(where), Path(llm)
    eos = tokenizer.token_to_id("<|im_end|>")
    number, count = int(questions), int(problems)
    solved = gsm8k.load(llm / "gsm8k" / "test.jsonl")[:count]
    rows = mmlu.rows(llm / "mmlu" / "test" / f"{SUBJECT}_test.csv")[:number]
    named = [dict(zip(("question", "choices", "answer"), row)) for row in rows]
    asked = mmlu.load(llm / "mmlu", SUBJECT)[:number]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder, "mmlu", MMLU, named, subject=SUBJECT)
        write(folder, "gsm8k", GSM8K, [x._asdict() for x in solved], steps=STEPS)
        write(folder, "texts", TEXTS, [x._asdict() for x in solved])
        examined = harness_model(model, variables, tokenizer, eos=eos, **OPTIONS)
        results, samples = evaluated(folder, examined)

    given = model, variables, tokenizer
    scores = score_choices(*given, asked, **OPTIONS)
    theirs = [[float(r[0][0]) for r in one["resps"]] for one in samples["mmlu"]]
    apart = float(np.abs(np.array(theirs) - scores.sums).max())
    both = results["mmlu"]["acc,none"], scores.accuracy()
    print(f"MMLU, {number} questions: log-likelihoods apart by at most {apart:.1e}")
    print(f"  accuracy {both[0]:.4f} by the harness, {both[1]:.4f} by score_choices")
    agree = apart < 1e-3 and both[0] == both[1]

    prompts = [f"Question: {one.question}\nAnswer:" for one in solved]
    told = {"steps": STEPS, "eos": eos, "stop": ("Question:",), **OPTIONS}
    answers = answer(*given, prompts, **told)
    equal = [s["resps"][0][0] == a for s, a in zip(samples["gsm8k"], answers)]
    right = gsm8k.exact_match(answers, solved)
    same = [bool(s["exact_match"]) for s in samples["gsm8k"]]
    print(f"GSM8K, {count} problems: {sum(equal)} answers are equal, letter by letter")
    print(f"  right: {sum(same)} by the harness's extraction, {sum(right)} by ours")
    agree &= all(equal) and same == right

    losses = []
    for one in solved:
        ids = np.array([[eos, *tokenizer.encode(one.question).ids]])
        logits = jax.nn.log_softmax(model.apply(variables, ids[:, :-1])[0])
        losses.append(float(np.asarray(logits)[range(len(logits)), ids[0, 1:]].sum()))
    theirs = [float(one["resps"][0][0]) for one in samples["texts"]]
    apart = float(np.abs(np.array(theirs) / np.array(losses) - 1).max())
    print(f"Texts, {count}: log-likelihoods apart by at most {apart:.1e} of themselves")
    return agree and apart < 1e-4


if __name__ == "__main__":
    sys.exit(not main(*sys.argv[1:]))
