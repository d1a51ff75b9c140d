"""Models by name: what is fetched, what never is, what is said without a network."""

import json
import sys
from functools import partial

import pytest

from peftjax.models import CheckpointError, load
from tests.helpers.fake_hub import SHA, fake_hub
from tests.helpers.model_cases import BERT, same_tree

hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

NEVER = ("pytorch_model.bin", "modeling.py", "../evil.json", "onnx/config.json", "x.h5")


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A Hub with one good repository, full of what must not be fetched."""
    files = {x.name: x.read_bytes() for x in BERT.iterdir() if x.is_file()}
    with fake_hub(monkeypatch, tmp_path / "cache") as server:
        server.repositories["some/bert"] = {**files, **dict.fromkeys(NEVER, b"bad")}
        inside = {f"encoder/{name}": data for name, data in files.items()}
        server.repositories["some/parts"] = {**inside, "model.py": b"bad"}
        yield server


def test_a_model_is_fetched_once_and_loaded_without_a_network(served, monkeypatch):
    expected = load(BERT)[1]
    same_tree(expected, load("some/bert")[1])
    assert {"config.json", "model.safetensors"} <= set(served.asked)
    assert not set(served.asked) & set(NEVER)
    fetched = len(served.asked)
    same_tree(expected, load("some/bert", revision="main")[1])
    assert len(served.asked) == fetched  # the cache has them
    same_tree(expected, load("some/parts", inside="/encoder/")[1])

    gone = partial(hub.HfApi.func, endpoint="http://localhost:9", token="none")
    monkeypatch.setattr(hub, "HfApi", gone)
    same_tree(expected, load("some/bert")[1])
    same_tree(expected, load("some/bert", revision=SHA)[1])
    with pytest.raises(CheckpointError) as error:
        load("some/other", revision="v1")
    told = str(error.value)
    assert "some/other at v1: the Hugging Face Hub cannot be reached" in told
    assert "hf download some/other --revision v1" in told and len(told) < 700


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("some/none", {}, "some/none: no such repository, or one that is private"),
        ("some/bert", {"revision": "v9"}, "at v9: the repository has no such revision"),
        ("some/parts", {}, r"some/parts: expected model.safetensors.*inside="),
        ("some/bert", {"inside": "onnx"}, "some/bert/onnx: expected model.safetensors"),
        ("some/bert", {"inside": ".."}, "expected model.safetensors"),
        ("some/bert", {"inside": "x.h5"}, "expected a .safetensors or .gguf"),
        ("some/pickles", {}, "pytorch_model.bin only: refused, and not fetched"),
        ("some/two", {}, "found a.gguf, b.gguf; choose one by inside='a.gguf'"),
        ("bert", {}, "a repository of the Hugging Face Hub is OWNER/NAME"),
        ("bert", {"revision": "main"}, "a repository .* is OWNER/NAME"),
        ("a/b/c", {}, "is OWNER/NAME"),
        ("some/model.gguf", {}, "no such file or folder"),
        ("tests/no_model", {}, "tests is a folder here; .* revision='main'"),
        (str(BERT), {"revision": "main"}, "is a path here"),
    ],
)
def test_a_name_that_cannot_be_loaded_is_one_clear_error(served, name, options, told):
    served.repositories["some/pickles"] = {"pytorch_model.bin": b"", "config.json": b""}
    served.repositories["some/two"] = {"a.gguf": b"", "b.gguf": b""}
    with pytest.raises(CheckpointError, match=told) as error:
        load(name, **options)
    assert len(str(error.value)) < 700 and not served.asked


def test_without_the_client_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'peftjax\[hub\]'"):
        load("some/bert")


def test_shards_outside_of_the_folder_are_refused_after_fetching(served):
    config = served.repositories["some/bert"]["config.json"]
    index = {"weight_map": {"a": "../../../evil.safetensors"}}
    served.repositories["some/shards"] = {
        "config.json": config,
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00001-of-00002.safetensors": b"",
        "other-00001-of-00002.safetensors": b"",
    }
    with pytest.raises(CheckpointError, match="in the same folder"):
        load("some/shards")
    assert "other-00001-of-00002.safetensors" not in served.asked
