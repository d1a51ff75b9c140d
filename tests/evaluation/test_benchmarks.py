"""GSM8K, MMLU and BBH: what is asked, and what counts as an answer."""

import json

import pytest

from peftjax.data.errors import DataError
from peftjax.evaluation import bbh, gsm8k, mmlu

TRICKY = {
    "She has 16 - 3 = <<16-3=13>>13 eggs.\n#### 13": "13",
    "That is $1,250.00 in all.\n#### $1,250.00": "1250",
    "#### -7 degrees, not #### 8": "-7",
    "The answer is 3. Check: 3 + 4 = 7": "3",
    "The answer is: 2. No, the answer is 5.": "5",
    "It takes 2 days, so 48 hours.": "48",
    "0.50 of 10 is 5.0": "5",
    "half of it, .25": "0.25",
    "from -$3 to 12,000,000": "12000000",
    "The answer is unclear, perhaps nine": None,
    "": None,
    "1e5 and 007": "7",
}


@pytest.mark.parametrize("text", TRICKY)
def test_numbers_of_tricky_answers(text):
    assert gsm8k.extract(text) == TRICKY[text]


def test_problems_are_read_and_matched(tmp_path):
    file = tmp_path / "test.jsonl"
    rows = [
        {"question": "1+1?", "answer": "It is 1+1=<<1+1=2>>2.\n#### 2"},
        {"question": "many?", "answer": "#### 1,000"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    problems = gsm8k.load(file)
    assert problems[0].answer == "It is 1+1=2.\n#### 2"
    assert [problem.number for problem in problems] == ["2", "1000"]
    assert "<<" in gsm8k.load(file, notes=True)[0].answer
    answers = ["so two, or 2.0", "#### 100"]
    assert gsm8k.exact_match(answers, problems) == [True, False]
    file.write_text(json.dumps({"question": "a", "answer": "no number"}))
    with pytest.raises(DataError, match=r"line 1: expected a solution that ends in"):
        gsm8k.load(file)
    file.write_text(json.dumps({"q": "a"}))
    with pytest.raises(DataError, match=r"expected question and answer"):
        gsm8k.load(file)


def test_questions_of_mmlu_with_and_without_examples(tmp_path):
    for part in ("dev", "test"):
        (tmp_path / part).mkdir()
    (tmp_path / "dev" / "old_art_dev.csv").write_text('"a, b?",w,x,y,z,C\nc?,1,2,3,4,A')
    named = "question,choice0,choice1,choice2,choice3,answer\nd?,5,6,7,8,1"
    (tmp_path / "test" / "old_art_test.csv").write_text(named)
    assert mmlu.subjects(tmp_path) == ["old_art"]
    (plain,) = mmlu.load(tmp_path, "old_art")
    assert plain.text.startswith(
        "The following are multiple choice questions about old"
    )
    assert plain.text.endswith("d?\nA. 5\nB. 6\nC. 7\nD. 8\nAnswer:")
    assert plain.choices == (" A", " B", " C", " D") and plain.answer == 1
    (solved,) = mmlu.load(tmp_path, "old_art", shots=2)
    assert "a, b?\nA. w\nB. x\nC. y\nD. z\nAnswer: C\n\nc?\n" in solved.text
    with pytest.raises(DataError, match="expected 5 examples, found 2"):
        mmlu.load(tmp_path, "old_art", shots=5)
    (tmp_path / "test" / "old_art_test.csv").write_text("d?,5,6,7,8,E")
    with pytest.raises(DataError, match="row 1: expected a question, four choices"):
        mmlu.load(tmp_path, "old_art")


def test_tasks_of_bbh(tmp_path):
    file = tmp_path / "task.json"
    text = "Pick.\nOptions:\n({}) one\n(B) two"
    rows = [{"input": text.format("A"), "target": t} for t in ("(B)", "(A)", "(B)")]
    file.write_text(json.dumps({"examples": rows}))
    examples = bbh.load(file)
    first, _ = bbh.questions(examples, shots=1)
    assert first.text.startswith("Q: Pick.\nOptions:\n(A) one\n(B) two\nA: (B)\n\nQ: ")
    assert first.text.endswith("\nA:")
    assert (first.choices, first.answer) == ((" (A)", " (B)"), 0)
    dashes = [bbh.Example("go?\nOptions:\n- Yes\n- No", "No")]
    assert bbh.questions(dashes)[0].choices == (" Yes", " No")
    plain = [bbh.Example("not True", "False"), bbh.Example("True", "True")]
    assert bbh.questions(plain)[1].choices == (" False", " True")
    words = [bbh.Example(f"sort {i}", f"word{i}") for i in range(11)]
    with pytest.raises(DataError, match="expected choices with 'word0'"):
        bbh.questions(words)
    with pytest.raises(ValueError, match="fewer than 11 examples"):
        bbh.prompts(words, shots=11)
    assert bbh.matches(" Word0. ", "word0") and not bbh.matches("word", "word0")
    file.write_text("{}")
    with pytest.raises(DataError, match=r"task\.json: expected"):
        bbh.load(file)


@pytest.mark.realdata
def test_real_files(shared_data):
    folder = shared_data / "llm"
    assert len(gsm8k.load(folder / "gsm8k" / "train.jsonl")) == 7473
    problems = gsm8k.load(folder / "gsm8k" / "test.jsonl")
    assert len(problems) == 1319
    assert all(gsm8k.exact_match([p.answer for p in problems], problems))
    subjects = mmlu.subjects(folder / "mmlu")
    assert len(subjects) == 57
    found = [mmlu.load(folder / "mmlu", subject, shots=5) for subject in subjects]
    assert sum(map(len, found)) == 14042
    choices = 0
    for file in sorted((folder / "bbh").glob("*.json")):
        try:
            choices += len(bbh.questions(bbh.load(file))) > 0
        except DataError:
            assert bbh.prompts(bbh.load(file), shots=3)
    print(f"\n{choices} tasks of BBH have choices")
    assert choices >= 20
