"""Patterns of received files: those that people write pass, and no other is slow."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

import peftjax as pj
from peftjax import presets
from peftjax.hub.patterns import STEPS, bound, check_patterns
from peftjax.hub.torch.config import ENDING, LAYERS
from peftjax.models.families import FAMILIES
from tests.helpers.model_cases import DATA

ROOT = Path(__file__).parents[2]
# Of the torch library's documentation, its defaults, and adapters that people share.
SHARED = [
    r".*",
    r".*\.(q_proj|v_proj)$",
    r".*language_model\..*\.(q_proj|v_proj)",
    r"^(?!.*vision).*\.(q_proj|k_proj|v_proj|o_proj)$",
    r"^(language_model(?=\.).*\.(v_proj|o_proj|gate_proj|up_proj|down_proj))$",
    r"model\.layers\.(?:[0-9]|1[0-5])\.(self_attn|mlp)\..*",
    r".*\.layers\.(1[6-9]|2\d|3[01])\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj",
    r".*(self_attn|mlp).*(q|k|v|o|gate|up|down)_proj",
    r".*layer.*attention.*query",
    r"(?P<block>blocks_\d{1,2})/attn/(?:qkv|proj)/kernel",
    r"\bvision_model\.encoder\.layers\.\d+\.self_attn\.\w+_proj",
    r"[^.]+\.encoder\.[\w.]*fc[12]?",
]


def written():
    """Return the rules in the repository's own texts."""
    names = "|".join(method.__name__ for method in pj.methods.ALL)
    rule = re.compile(rf"""(?<=[{{\s(])r?["']([^"'\n]+)["']: (?:pj\.)?(?:{names})\(""")
    for folder in ("configs", "experiments", "notebooks", "peftjax", "tests", "docs"):
        for file in (ROOT / folder).rglob("*.*"):
            if file.suffix in (".py", ".md") and "hub" not in file.parts:
                yield from rule.findall(file.read_text("utf-8"))
    yield from rule.findall((ROOT / "README.md").read_text("utf-8"))


def preset():
    """Return the rules of every preset."""
    for family in FAMILIES:
        for name in family.called:
            for method in ("full", "bitfit", pj.LoRA(2, alpha=4.0)):
                yield from presets.rules(name, method)
            every: Any = [*family.placements.parts]
            yield from presets.rules(name, pj.LoRA(2, alpha=4.0), parts=every)


def configured():
    """Return the patterns in the torch library's files, and the form of each."""
    for file in DATA.rglob("adapter_config.json"):
        config = json.loads(file.read_text())
        for field in ("target_modules", "exclude_modules", "feedforward_modules"):
            if isinstance(config.get(field), str):
                yield config[field], "{}"
        for field in ("rank_pattern", "alpha_pattern"):
            yield from ((key, ENDING) for key in config.get(field) or {})
        if isinstance(config.get("layers_pattern"), str):
            yield config["layers_pattern"], LAYERS


def test_patterns_that_people_write_pass():
    rules = {*written(), *preset()}
    assert len(rules) > 40 and any("/" in rule for rule in rules)
    for rule in sorted(rules):
        check_patterns([rule])
    check_patterns(rules)
    forms = {*configured()}
    assert {form for _, form in forms} == {"{}", ENDING, LAYERS}
    for pattern, form in forms:
        check_patterns([pattern], form)
    for pattern in SHARED:
        check_patterns([pattern])
    numbers = "|".join(map(str, range(80)))
    check_patterns([f"layers_({numbers})/self_attn/q_proj/kernel"])
    each = [rf"model\.layers\.{i}\.mlp\.up_proj" for i in range(560)]
    check_patterns(each, ENDING)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(a+)+$", "a group with quantifiers"),
        ("((a*)*)*b", "a group with quantifiers"),
        ("(a|a)*b", "a group with quantifiers or alternatives"),
        ("(.*)*x", "a group"),
        ("(a?){30}a{30}", "a group"),
        ("a?" * 30 + "a" * 30, "steps"),
        ("(a|a)" * 30 + "b", "steps"),
        (".*" * 6 + "b", "steps"),
        (r"\w*\w*\w*\w*\w*!", "steps"),
        ("(?:a{0,9}){2}b", "a group"),
        ("a{0,9}" * 9 + "b", "steps"),
        (r"(?=.*.*.*.*a)b", "steps"),
        (r"(a)\1", "unsupported escape"),
        (r"(?P<n>a)(?P=n)", "unsupported group"),
        (r"(?<=a)b", "unsupported group"),
        (r"(?i)a", "unsupported group"),
        (r"(?>a+)b", "unsupported group"),
        (r"a++b", "a quantifier over a quantifier"),
        (r"(?(1)a|b)", "unsupported group"),
        ("(query", "an open \\("),
        ("query)", "a \\) without \\("),
        ("[query", "class"),
        ("[[a]]", "class"),
        ("[b-a]", "not a regular expression"),
        ("*a", "repeats nothing"),
        ("^*", "an anchor"),
        ("a{2,1}", r"\{m,n\}"),
        ("a{999999999999}", r"\{m,n\}"),
        (r"\x41", "unsupported escape"),
        ("\\", "unsupported escape"),
        ("(" * 50 + ")" * 50, "groups in each other"),
        ("a" * 3000, "longer than"),
        ("(" * 100_000, "longer than"),
    ],
)
def test_what_may_be_slow_or_is_not_of_the_grammar_is_refused(pattern, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        check_patterns([pattern])
    assert len(str(caught.value)) < 400


def test_many_patterns_are_counted_together():
    with pytest.raises(ValueError, match="too many patterns"):
        check_patterns([rf"layer.*\.{i}" for i in range(100_000)], ENDING)


# Near the limit of what is accepted; each with paths on which it is slow.
WORST = [
    ".*abc.*abc.*abc",
    ".*aab.*aab.*b",
    r".*a\..*a\..*a",
    "(.*)(.*)[bc]",
    ".+?.+?b",
    "(?:aa){2,}(?:aa)+?[bc]",
    "a?a?a?a?a?a?.*b",
    "(.*a)(?:aa|ab|a)(?:aa|ab|a)(.*)b",
    "(?!.*ab.*ab)a.*ac",
    ENDING.replace("{}", r".*layers\.0\..*q_proj"),
    ENDING.replace("{}", r"a\..*b"),
    LAYERS.replace("{}", "(a|a.a|a.a.a)") + r".*b",
]
PATHS = ["a" * 300, "a." * 150, "ab" * 150, "aab" * 100, "a.1." * 75]


@pytest.mark.parametrize("pattern", WORST)
def test_the_worst_accepted_pattern_is_quick(pattern):
    assert 1e3 < bound(pattern) <= STEPS
    expression, slowest = re.compile(pattern), 0.0
    for path in PATHS:
        for text in (path[:300], path[:298] + "zb", path[:299] + "!"):
            # The best of three: other programs run beside.
            times = []
            for _ in range(3):
                start = time.perf_counter()
                expression.fullmatch(text)
                times.append(time.perf_counter() - start)
            slowest = max(slowest, min(times))
    assert slowest < 0.05
