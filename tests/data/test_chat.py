"""Instructions and conversations as tokens: which are learned, which are cut."""

import json

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs peftjax[text]")

from tokenizers import processors

from peftjax.data import chat, chat_template, instructions
from peftjax.data.chat import Part, encode, shown
from peftjax.data.chat_template import ChatTemplate, load_chat_template
from peftjax.data.errors import DataError
from peftjax.data.packing import pack
from tests.helpers.llm_case import tokenizer

TURN = "<|im_start|>{}\n{}<|im_end|>\n"
# As SmolLM2's, which puts a system message before a conversation without one.
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ENDS = {"eos_token": "<|im_end|>"}


def texts(tokens, ids):
    return tokens.decode(np.asarray(ids).tolist(), skip_special_tokens=False)


def test_only_the_output_is_learned_and_the_papers_end_their_texts():
    tokens = tokenizer()
    row = {"instruction": "add", "input": "1 2", "output": "3"}
    chats = encode(tokens, [chat.hydralora(row, "</s>")], 1024)
    assert texts(tokens, chats.ids) == "add\n1 2</s>3</s>"
    assert texts(tokens, chats.ids[chats.learned == 1]) == "3</s>"
    parts = chat.alpaca(row, "</s>")
    assert parts[0].text.endswith(
        "### Instruction:\nadd\n\n### Input:\n1 2\n\n### Response:"
    )
    assert "paired with an input" in parts[0].text
    plain = chat.alpaca({**row, "input": ""}, "</s>")[0].text
    assert "Input" not in plain and "paired" not in plain
    assert [part.learned for part in parts] == [False, True]


def test_a_beginning_that_the_file_asks_for_stands_before_the_first_part_alone():
    tokens = tokenizer()
    tokens.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    chats = encode(tokens, [[Part("a"), Part("b", True)]], 9)
    assert texts(tokens, chats.ids) == "<s>ab" and chats.learned.tolist() == [0, 0, 1]


def test_what_is_too_long_is_counted_and_cut_or_left_out():
    tokens = tokenizer()
    rows = [
        [Part("abc"), Part("de", True)],  # fits
        [Part("abcd"), Part("efgh", True)],  # loses some of its answer
        [Part("abcdefgh"), Part("i", True)],  # loses all of it
        [Part("abc"), Part("de")],  # has none
    ]
    cut = encode(tokens, rows, 6)
    assert (cut.long, cut.dropped, len(cut)) == (2, 2, 2)
    assert cut.rows.tolist() == [0, 1] and cut.lengths.tolist() == [5, 6]
    assert texts(tokens, cut.ids[cut.learned == 1]) == "deef"
    dropped = encode(tokens, rows, 6, longer="drop")
    assert (dropped.long, dropped.dropped, dropped.rows.tolist()) == (2, 3, [0])
    with pytest.raises(DataError, match="none of 1 examples .* template that marks"):
        encode(tokens, rows[3:], 6)
    with pytest.raises(ValueError, match="longer='wrap'"):
        encode(tokens, rows, 6, longer="wrap")


def test_the_first_token_of_a_row_is_no_target():
    chats = encode(tokenizer(), [[Part("ab", True)]], 6)
    assert chats.learned.tolist() == [0, 1]


def test_a_mask_is_shown_token_by_token():
    tokens = tokenizer()
    chats = encode(tokens, [[Part("the"), Part(" a", True)]], 6)
    lines = shown(tokens, chats.ids, chats.learned).splitlines()
    assert [line[0] for line in lines] == [" ", " ", "+"]
    assert lines[-1].endswith("' a'") and str(chats.ids[-1]) in lines[-1]


def conversation(*turns):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)]


def test_the_turns_of_the_assistant_are_learned_up_to_their_end():
    template = ChatTemplate("here", CHATML, ENDS)
    talk = conversation("hi", "ho", "so", "no")
    whole, prompt = template.render([talk[:1]], False) + template.render([talk[:1]])
    asked = TURN.format("system", "Be kind.") + TURN.format("user", "hi")
    assert whole == asked and prompt == asked + "<|im_start|>assistant\n"
    (parts,) = template.parts([talk])
    assert [part.text for part in parts if part.learned] == [
        "ho<|im_end|>",
        "no<|im_end|>",
    ]
    joined = "".join(part.text for part in parts)
    assert joined + "\n" == template.render([talk], False)[0]


def test_a_template_that_rewrites_what_was_said_is_refused():
    text = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="does not write turn after turn"):
        ChatTemplate("here", text, {}).parts([conversation("a", "b")])


HOSTILE = {
    "objects": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['json'] }}",
    "changes": "{{ messages.append(1) }}",
    "files": "{% include '/etc/passwd' %}",
    "ranges": "{% for i in range(10**12) %}x{% endfor %}",
    "memory": "{% set n = namespace(s='x' * 1000) %}{% for i in range(60) %}"
    "{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "own refusal": "{{ raise_exception('no system message') }}",
    "syntax": "{% for %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_does_nothing(name):
    template = ChatTemplate("received.jinja", HOSTILE[name], {})
    with pytest.raises(DataError, match=r"received\.jinja: the chat template failed"):
        template.render([conversation("hi")])


def test_a_template_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(chat_template, "SECONDS", 3.0)
    loop = "{% for i in range(99999) %}"
    text = loop * 3 + "{% endfor %}" * 3
    with pytest.raises(DataError, match="took too long"):
        ChatTemplate("received.jinja", text, {}).render([conversation("hi")])


def test_templates_are_found_beside_the_tokenizer(tmp_path):
    with pytest.raises(DataError, match="expected a chat template, found None"):
        load_chat_template(tmp_path)
    settings = {"eos_token": {"content": "</s>"}, "chat_template": "{{ eos_token }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = load_chat_template(tmp_path)
    assert found.special == {"eos_token": "</s>"}
    assert found.render([conversation("hi")]) == ["</s>"]
    (tmp_path / "chat_template.jinja").write_text("b")
    assert load_chat_template(tmp_path).text == "b"


@pytest.mark.realdata
def test_smollm2s_template(shared_data):
    template = load_chat_template(shared_data / "weights" / "smollm2_135m")
    (parts,) = template.parts([conversation("hi", "ho")])
    assert parts[-1] == Part("ho<|im_end|>", True)
    assert parts[0].text.startswith("<|im_start|>system\n")
    assert parts[0].text.endswith("user\nhi<|im_end|>\n<|im_start|>assistant\n")


def test_texts_are_packed_whole_each_under_a_number_of_its_own():
    tokens, rng = tokenizer(), np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), n)) for n in rng.integers(3, 9, 40)]
    chats = encode(tokens, [[Part("q"), Part(word, True)] for word in words], 16)
    packed = pack(chats, 16, pad=0, bins=4)
    found = []
    for ids, segments, mask in zip(*packed.values()):
        for number in range(1, segments.max() + 1):
            own = np.flatnonzero(segments == number)
            np.testing.assert_array_equal(own, np.arange(own[0], own[-1] + 1))
            assert mask[own].tolist() == [0] + [1] * (len(own) - 1)
            found.append(texts(tokens, ids[own]))
        assert not ids[segments == 0].any() and not mask[segments == 0].any()
    assert sorted(found) == sorted("q" + word for word in words)
    assert (packed["segment_ids"] > 0).mean() > 0.85
    with pytest.raises(ValueError, match="at least the longest text"):
        pack(chats, 5, pad=0)


def test_rows_of_every_format_and_of_other_columns(tmp_path):
    rows = [{"question": "1+1", "answer": "2"}, {"question": "1+2", "answer": "3"}]
    lines, whole = tmp_path / "a.jsonl", tmp_path / "a.json"
    lines.write_text("\n".join(map(json.dumps, rows)))
    whole.write_text(json.dumps(rows))
    names = {"instruction": "question", "output": "answer"}
    for file in (lines, whole):
        found = instructions.read(file, names)
        assert found[1] == {"instruction": "1+2", "input": "", "output": "3"}
        with pytest.raises(DataError, match="row 1: no column 'instruction'; expected"):
            instructions.read(file)
    talk = conversation("hi", "ho")
    whole.write_text(json.dumps([{"messages": talk}]))
    assert instructions.read(whole) == [{"messages": talk}]
    bad = {
        "[1]": "expected a list of objects",
        "{": "not JSON",
        "[]": "expected rows, found none",
        '[{"messages": "hi"}]': "expected a list of",
        json.dumps([{"messages": talk[:1]}]): "one of the assistant, found none",
        json.dumps([{"instructions": "a", "output": "b"}]): "mean instructions",
        json.dumps([{"instruction": "a", "output": 3}]): "output=3: expected a text",
    }
    for text, expected in bad.items():
        whole.write_text(text)
        with pytest.raises(DataError, match=expected):
            instructions.read(whole)
