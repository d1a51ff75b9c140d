"""Adapter files: the same bits back, or one error that names what and where."""

import json
from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import peftjax as pj
from peftjax.hub import files, tensors
from peftjax.hub.describe import describe, restore
from peftjax.hub.tensors import AdapterFileError


class Net(nn.Module):
    width: int = 12

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width, name="hidden")(x))
        return nn.Dense(3, name="head")(x)


X = jnp.ones((2, 5))
RULES = {"hidden/kernel": pj.LoRA(rank=2, alpha=3.0), "head/.*": pj.Full()}


def planned(width=12, rules=RULES, seed=0):
    model = Net(width)
    variables = model.init(jax.random.key(seed), X)
    return pj.adapt(model.apply, variables, X, rules=rules), variables


def fresh(peft, seed=1):
    adapters = peft.init(jax.random.key(seed))
    leaves, structure = jax.tree.flatten(adapters)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        structure,
        [leaf + jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves)],
    )


@pytest.fixture
def saved(tmp_path):
    peft, variables = planned()
    adapters = fresh(peft)
    files.save(tmp_path / "lora", peft, adapters, variables)
    return tmp_path / "lora", peft, variables, adapters


def refused(saved, *named, peft=None, variables=None):
    path, own, _, _ = saved
    with pytest.raises(AdapterFileError) as caught:
        files.load(path, peft or own, variables)
    message = str(caught.value)
    assert len(message.splitlines()) <= 20 and len(message) < 2500
    for word in named:
        assert str(word) in message, message
    return message


def rewrite(saved, change):
    file = saved[0].with_suffix(".safetensors")
    arrays = load_file(file)
    change(arrays)
    save_file(arrays, file)


def test_round_trip_is_exact(saved):
    path, peft, variables, adapters = saved
    for name in (path, path.with_suffix(".safetensors"), str(path)):
        loaded = files.load(name, peft, variables)
        assert jax.tree.structure(loaded) == jax.tree.structure(adapters)
        jax.tree.map(np.testing.assert_array_equal, loaded, adapters)
    assert set(load_file(path.with_suffix(".safetensors"))) == {
        "hidden/kernel:a",
        "hidden/kernel:b",
        "head/kernel:value",
        "head/bias:value",
    }
    assert [p.name for p in sorted(path.parent.iterdir())] == [
        "lora.json",
        "lora.safetensors",
    ]


def test_bfloat16_arrays_keep_their_bits(tmp_path):
    path = tmp_path / "w.safetensors"
    tree = {"params": {"k": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3) / 7}}
    tensors.save_tree(path, tree)
    back = tensors.load_tree(path, jax.eval_shape(lambda: tree))
    assert back["params"]["k"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(back["params"]["k"], tree["params"]["k"])


def test_transposed_arrays_are_written_in_their_order(tmp_path):
    path = tmp_path / "w.safetensors"
    tree = {"k": np.arange(6.0, dtype=np.float32).reshape(2, 3).T}
    tensors.save_tree(path, tree)
    np.testing.assert_array_equal(tensors.load_tree(path, tree)["k"], tree["k"])


def test_a_file_is_read_without_a_model(saved):
    path, _, _, adapters = saved
    rules, found = files.read_module(path)
    assert rules == RULES
    assert jax.tree.structure(found) == jax.tree.structure(adapters)
    jax.tree.map(np.testing.assert_array_equal, found, adapters)


def test_rules_come_back_and_plan_the_same_adapters(saved):
    path, peft, _, _ = saved
    rules = files.read_rules(path)
    assert rules == RULES and list(rules) == list(RULES)
    assert planned(rules=rules)[0].sites == peft.sites


FIRST_FORMAT = [  # a method, and how the first format spelled its settings
    (
        pj.HRA(4, True, penalty_weight=0.5, start="pairs"),
        {
            '"penalty_weight"': '"penalty"',
            '"start"': '"init"',
            '"orthogonal": true': '"orthogonal": "gram_schmidt"',
        },
    ),
    (pj.Hydra(2, start="normal"), {'"start"': '"init"'}),
    (pj.OFT(block=5, neumann=True), {'"neumann": true': '"form": "neumann"'}),
    (pj.OFT(block=5), {'"neumann": false': '"form": "cayley"'}),
    (
        pj.Composition(2, 3, share=True),
        {'"share": true': '"granularity": "global"'},
    ),
    (pj.Composition(2, 3), {'"share": false': '"granularity": "layer"'}),
]


@pytest.mark.parametrize(("method", "spelled"), FIRST_FORMAT)
def test_a_file_of_the_first_format_is_read(tmp_path, method, spelled):
    rules = {"hidden/kernel": method, "head/.*": pj.Full()}
    peft, variables = planned(rules=rules)
    adapters = fresh(peft)
    _, facts_file = files.save(tmp_path / "old", peft, adapters, variables)
    text = facts_file.read_text().replace('"format": 2', '"format": 1')
    for now, then in spelled.items():
        assert now in text
        text = text.replace(now, then)
    facts_file.write_text(text)
    assert files.read_rules(tmp_path / "old") == rules
    loaded = files.load(tmp_path / "old", peft, variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, adapters)


def test_another_model_is_named_leaf_by_leaf(saved):
    peft, _ = planned(width=7)
    refused(
        saved,
        "another model",
        "hidden/kernel: expected float32[5, 7], found float32[5, 12]",
        peft=peft,
    )


def test_another_checkpoint_of_the_same_model_is_told_by_its_content(saved):
    _, other = planned(seed=5)
    refused(saved, "hidden/kernel", "digest", variables=other)
    path, peft, _, _ = saved
    files.load(path, peft)  # without variables there is no content to compare


def test_a_replaced_head_is_no_other_model(saved):
    path, peft, variables, _ = saved
    head = jax.tree.map(jnp.ones_like, variables["params"]["head"])
    files.load(path, peft, {"params": {**variables["params"], "head": head}})


def test_changed_rules_are_shown(saved):
    rules = {**RULES, "hidden/kernel": replace(RULES["hidden/kernel"], alpha=5.0)}
    peft, _ = planned(rules=rules)
    refused(saved, "hidden/kernel", "alpha=5.0", "alpha=3.0", peft=peft)


@pytest.mark.parametrize("keep", [0, 4, 100, -5])
def test_truncated_arrays(saved, keep):
    file = saved[0].with_suffix(".safetensors")
    file.write_bytes(file.read_bytes()[:keep])
    refused(saved, file, "truncated")


def test_truncated_facts(saved):
    file = saved[0].with_suffix(".json")
    file.write_text(file.read_text()[:-20])
    refused(saved, file, "truncated")


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 9}', '{"format": 1}'])
def test_facts_of_another_layout(saved, text):
    saved[0].with_suffix(".json").write_text(text)
    refused(saved, "expected")


@pytest.mark.parametrize("key", ["rules", "sites", "base"])
def test_malformed_facts(saved, key):
    file = saved[0].with_suffix(".json")
    file.write_text(json.dumps({**json.loads(file.read_text()), key: 3}))
    refused(saved, file)


def test_missing_and_unexpected_arrays(saved):
    rewrite(saved, lambda arrays: arrays.update(c=arrays.pop("hidden/kernel:b")))
    refused(
        saved,
        "hidden/kernel:b: expected float32[2, 12], found no such array",
        "c: expected no such array, found float32[2, 12]",
    )


def test_wrong_shape(saved):
    rewrite(saved, lambda arrays: arrays.update({"head/bias:value": np.zeros(4, "f")}))
    refused(saved, "head/bias:value: expected float32[3], found float32[4]")


def test_nan_is_refused_on_load_and_on_save(saved, tmp_path):
    def spoil(arrays):
        arrays["hidden/kernel:b"] = np.full((2, 12), np.nan, "f")

    rewrite(saved, spoil)
    refused(saved, "hidden/kernel:b", "finite")
    _, peft, _, adapters = saved
    adapters["hidden/kernel"]["a"] = (
        adapters["hidden/kernel"]["a"].at[0, 0].set(jnp.inf)
    )
    with pytest.raises(AdapterFileError, match="hidden/kernel:a"):
        files.save(tmp_path / "bad", peft, adapters)
    assert not list(tmp_path.glob("*bad*"))


def test_two_files_of_different_saves_do_not_pass(saved, tmp_path):
    path, peft, _, _ = saved
    files.save(tmp_path / "other", peft, fresh(peft, seed=9))
    (tmp_path / "other.safetensors").replace(path.with_suffix(".safetensors"))
    refused(saved, "SHA-256", "lora.json")


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_an_absent_file_is_named(saved, suffix):
    path, peft, _, _ = saved
    path.with_suffix(suffix).unlink()
    with pytest.raises(FileNotFoundError, match=f"lora{suffix}"):
        files.load(path, peft)


def test_a_failed_save_leaves_the_earlier_one(saved, monkeypatch):
    path, peft, variables, adapters = saved

    def full(file, arrays):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(OSError, match="No space"):
        files.save(path, peft, fresh(peft, seed=9), variables)
    assert len(list(path.parent.iterdir())) == 2
    jax.tree.map(
        np.testing.assert_array_equal, files.load(path, peft, variables), adapters
    )


def test_adapters_of_another_plan_are_not_saved(saved, tmp_path):
    _, peft, _, adapters = saved
    del adapters["head/bias"]
    with pytest.raises(AdapterFileError, match="head/bias:value"):
        files.save(tmp_path / "bad", peft, adapters)


@dataclass(frozen=True)
class Own(pj.Method):
    sizes: tuple[int, ...] = (1, 2)
    inner: pj.Method | None = None


def test_methods_survive_json_with_tuples_and_inner_methods():
    method = Own(sizes=(3, 4), inner=pj.LoRA(rank=2, alpha=3.0))
    text = msgspec.json.encode(describe(method))
    assert restore(json.loads(text), [Own]) == method


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"name": "LoRRA", "settings": {}}, "LoRA"),
        ({"name": "os.system", "settings": {}}, "unknown method"),
        ({"name": "LoRA", "settings": {"rank": 2, "alpha": 1, "rnk": 3}}, "rnk"),
        ({"name": "LoRA"}, "settings"),
        ([], "settings"),
        ({"name": ["LoRA"], "settings": {}}, "name"),
    ],
)
def test_malformed_methods_are_refused(document, named):
    with pytest.raises(ValueError, match=named):
        restore(document)


def test_a_setting_that_json_cannot_hold_is_named():
    with pytest.raises(TypeError, match=r"Own\.sizes"):
        describe(Own(sizes=np.zeros(2)))
