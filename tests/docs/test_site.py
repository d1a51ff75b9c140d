"""The site: every public name and method has its page, every link an end.

The examples of the pages are run as `docs/**/*.md` by the same command as the tests.
"""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path, PurePosixPath

import pytest
import yaml

import peftjax as pj
from docs import api, copies, methods, notebooks
from docs.tex import formulas
from peftjax.core.method import Layer

ROOT = Path(__file__).parents[2]
WRITTEN = {
    path.relative_to(ROOT / "docs").as_posix(): path.read_text("utf-8")
    for path in sorted((ROOT / "docs").rglob("*.md"))
}
PAGES = {**WRITTEN, **copies.pages(), **methods.pages(), **api.pages()}
FILES = {f"results/{path.name}" for path in (ROOT / "results").glob("*.png")}
FILES |= {path.relative_to(ROOT).as_posix() for path in notebooks.files()}
FILES |= {f"images/{path.name}" for path in (ROOT / "docs/images").iterdir()}
# The last key; those before it have tags of mkdocs' own.
NAV = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2])
CALLED = {cls.__name__: cls for cls in methods.methods.ALL}


def undocumented(names):
    """Return those of dotted names that say nothing of themselves."""
    silent = []
    for name in names:
        module, _, last = name.rpartition(".")
        said = (getattr(import_module(module), last).__doc__ or "").strip()
        if not said or said.startswith(f"{last}("):  # dataclasses write that
            silent.append(name)
    return silent


def addresses(entries):
    """Yield the addresses in a navigation."""
    for entry in entries:
        for target in entry.values():
            yield from [target] if isinstance(target, str) else addresses(target)


def broken(pages):
    """Return the links, within pages by address, that lead nowhere."""
    found = []
    for uri, text in pages.items():
        text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            path = link.partition("#")[0]
            if "://" in link or not path:
                continue
            parts: list[str] = []
            for part in (PurePosixPath(uri).parent / path).parts:
                parts = parts[:-1] if part == ".." else [*parts, part]
            if "/".join(parts) not in {*pages, *FILES}:
                found.append(f"{uri}: {link}")
    return found


def test_every_public_name_is_documented():
    lists = api.public()
    faces = [f"peftjax.{name}" for name in pj.__all__]
    assert set(pj._ROOMS) <= set(api.rooms()) and lists["peftjax"] == faces
    assert undocumented(name for names in lists.values() for name in names) == []
    text = "".join(api.pages().values())
    for name in (name for names in lists.values() for name in names):
        assert f"::: {name}\n" in text


def test_a_name_without_words_is_found(monkeypatch):
    monkeypatch.setattr("peftjax.presets.rules.__doc__", None)
    names = [name for names in api.public().values() for name in names]
    assert undocumented(names) == ["peftjax.presets.rules"]


@pytest.mark.parametrize("name", CALLED)
def test_a_method_has_its_page(name):
    page, method = PAGES[f"methods/{name}.md"], methods.example(CALLED[name])
    said = method.count(Layer(methods.D_IN, methods.D_OUT))
    counted = methods.count(method)
    own = methods.count(method, shared=False)
    assert said in (None, own) and f"| together | | {counted:,} |" in page
    assert page.count("<math") == len(formulas(CALLED[name].__doc__))
    paper = "arXiv" in methods.sources(CALLED[name])
    assert ("](https://arxiv.org/abs/" in page) == paper
    assert methods.tested(CALLED[name])[1] in page
    assert methods.cost(name) in page
    row = f"| [{name}]({name}.md) | {methods.adds(CALLED[name])} | "
    row += f"{methods.papers(CALLED[name])} | "
    assert len(methods.adds(CALLED[name])) > 5 and row in PAGES["methods/index.md"]
    assert bool(methods.papers(CALLED[name])) >= paper


def test_costs_are_those_of_the_results():
    assert len(methods.measured()) > 20
    over = methods.measured()["LoRA"]["flops"]
    assert 0.8 < over < 1 and f"takes {over:.2f} of the FLOPs" in methods.cost("LoRA")
    assert "Not measured yet" in methods.cost("AnotherMethod")


def test_formulas_are_found_in_docstrings():
    without = {name for name, cls in CALLED.items() if not formulas(cls.__doc__)}
    assert without == {"Full", "GLoRASupernet"}


def test_every_page_is_in_the_navigation():
    given = set(addresses(NAV))
    made = {*addresses(methods.nav()), *addresses(api.nav())}
    folders = {"methods/", "api/", "notebooks/"}
    assert folders <= given and given - folders == {*WRITTEN, *copies.FILES}
    assert made == {*methods.pages(), *api.pages()}
    named = {target: (ROOT / target).is_file() for target in addresses(notebooks.nav())}
    assert len(named) == 7 and all(named.values())
    assert {"A tour", "What LoRA learns"} <= {t for e in notebooks.nav() for t in e}


def test_every_link_has_an_end():
    assert broken(PAGES) == []
    planted = {**PAGES, "pods/x.md": "[a](../index.md) [b](index.md)"}
    assert broken(planted) == ["pods/x.md: index.md"]


@pytest.mark.parametrize("file", ["README.md", *copies.FILES.values()])
def test_every_link_in_the_clone_has_an_end(file):
    links = re.findall(r"\]\(([^)\s#]+)", (ROOT / file).read_text("utf-8"))
    paths = [(ROOT / file).parent / link for link in links if "://" not in link]
    assert [path for path in paths if not path.exists()] == []


def test_files_named_to_contributors_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    names = re.findall(r"`([\w.]+/[\w./]+)`", text)
    paths = [name for name in names if not re.search("NAME|FOLDER|JSON", name)]
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_python_block_of_a_page_is_run():
    for uri, text in WRITTEN.items():
        for kind, first in re.findall(r"^```(\w+)\n(.*)", text, re.MULTILINE):
            assert kind in ("bash", "text", "pycon"), uri
            assert (kind == "pycon") == first.startswith(">>> "), f"{uri}: {first}"


def test_a_broken_example_fails(tmp_path):
    text = WRITTEN["compare.md"]
    for name, content in {
        "right": text,
        "wrong": text.replace("OFT 2", "OFT 3"),
    }.items():
        (tmp_path / f"{name}.md").write_text(content)
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "1 failed, 1 passed" in done.stdout and "OFT 324" in done.stdout
