"""Adapters put up with a card and fetched again, on a Hub of our own."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import peftjax as pj
from peftjax.hub import AdapterFileError
from peftjax.hub.card import card
from peftjax.storage.repository import RepositoryError
from tests.helpers.fake_hub import fake_hub
from tests.helpers.model_cases import PEFT, same_tree

hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

GIVEN = {
    "base": "owner/base",
    "data": [{"examples": 626, "sha256": "ab" * 32}],
    "scores": {"accuracy": 0.8833, "loss|x": None},
    "command": "python -m experiments.finetune --config a.py\necho ```",
}


@pytest.fixture
def served(tmp_path, monkeypatch):
    with fake_hub(monkeypatch, tmp_path / "cache") as server:
        yield server


@pytest.fixture
def adapted(tmp_path):
    """An adapter in files: its plan, base, arrays, and their path."""
    model, x = nn.Dense(4), jnp.ones((1, 3))
    variables = model.init(jax.random.key(0), x)
    rules = {"kernel|nothing": pj.LoRA(rank=2, alpha=3.0)}
    peft = pj.adapt(model.apply, variables, x, rules=rules)
    adapters = peft.init(jax.random.key(1))
    path = tmp_path / "run" / "adapter"
    pj.hub.save(path, peft, adapters, variables)
    return peft, variables, adapters, path


def test_an_adapter_goes_up_with_its_card_and_comes_back(served, adapted, monkeypatch):
    peft, variables, adapters, path = adapted
    address = pj.hub.push("me/digits", path, **GIVEN)
    assert address.endswith("me/digits")
    files = served.repositories["me/digits"]
    assert set(files) == {"README.md", "adapter.json", "adapter.safetensors"}
    text = files["README.md"].decode()
    for part in (
        'base_model: "owner/base"\n',
        r"| method | `LoRA(rank=2, alpha=3.0, rs=false, dropout=0.0)` on `kernel\|noth",
        "| base | `owner/base`, 2 parameters, fingerprint `",
        f"| data | `examples 626, sha256 {'ab' * 32}` |",
        "| accuracy | 0.8833 |\n| loss x | not finite |\n",
        "````bash\npython -m experiments.finetune --config a.py\necho ```\n````\n",
        'path = peftjax.hub.pull("me/digits")',
    ):
        assert part in text, text

    files["setup.py"] = b"bad"
    found = pj.hub.pull("me/digits")
    same_tree(pj.hub.load(found, peft, variables), adapters)
    assert set(served.asked) == {"adapter.json", "adapter.safetensors"}
    gone = partial(hub.HfApi.func, endpoint="http://localhost:9", token="none")
    monkeypatch.setattr(hub, "HfApi", gone)
    assert pj.hub.pull("me/digits") == found
    with pytest.raises(RepositoryError, match=r"me/x: not uploaded .*hf upload me/x"):
        pj.hub.push("me/x", path)


def test_what_could_not_be_loaded_is_not_put_up(served, adapted, tmp_path):
    *_, path = adapted
    tensors = path.with_suffix(".safetensors")
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1] + b"\1")
    with pytest.raises(AdapterFileError, match="SHA-256"):
        pj.hub.push("me/x", path)
    with pytest.raises(FileNotFoundError):
        pj.hub.push("me/x", tmp_path / "none")
    with pytest.raises(ValueError, match="OWNER/NAME"):
        pj.hub.push("x", path)
    served.repositories["me/model"] = {"model.safetensors": b""}
    with pytest.raises(AdapterFileError, match=r"me/model: expected adapter\.json"):
        pj.hub.pull("me/model")
    assert "me/x" not in served.repositories and not served.asked


def test_an_adapter_of_the_torch_library(served):
    folder = next(x.parent for x in PEFT.rglob("adapter_config.json"))
    pj.hub.push("me/x", folder)
    assert set(served.repositories["me/x"]) == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors")
    }
    assert (pj.hub.pull("me/x") / "adapter_model.safetensors").is_file()
    text = card("me/x", {"peft_type": "LORA", "r": 4}, base="/home/me/model")
    assert '"peft"' in text and "`LORA(r=4)`" in text and "load_torch" in text
    assert "base_model:" not in text  # a path is no name
