"""A received adapter file is only data: one error that names file and reason."""

import hashlib
import json
import struct

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import peftjax as pj
from peftjax.hub import AdapterFileError, load, read_rules, save
from peftjax.hub.files import read_module

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def plan():
    model, x = nn.Dense(4), jnp.ones((2, 3))
    variables = model.init(jax.random.key(0), x)
    rules = {"kernel": pj.LoRA(2, alpha=6.0), "bias": pj.Full()}
    return pj.adapt(model.apply, variables, x, rules=rules)


@pytest.fixture
def files(plan, tmp_path):
    """Return the files of an adapter, and a way to read them that must fail."""
    adapters = plan.init(jax.random.key(1))
    tensors, facts = save(tmp_path / "a", plan, adapters)

    def refused(*named, readers=(load, read_module), error=AdapterFileError):
        for reader in readers:
            with pytest.raises(error) as caught:
                reader(tensors, plan) if reader is load else reader(tensors)
            message = str(caught.value)
            assert len(message) < 1500 and len(message.splitlines()) < 15, message
            for word in (str(tmp_path), *named):
                assert word in message, message

    return tensors, facts, refused


def sign(tensors, facts):
    """Make the facts those of the arrays' file as it is now."""
    found = json.loads(facts.read_text())
    found["sha256"] = hashlib.sha256(tensors.read_bytes()).hexdigest()
    facts.write_text(json.dumps(found))


WRONG = [
    None,
    True,
    -1,
    2**64,
    1.5,
    "x" * 100_000,
    [],
    [None],
    {"x": 1},
    [[1, 2]],
    [["(a+)+$", "LoRA"]],
]


@pytest.mark.parametrize("field", ["format", "rules", "sites", "base", "sha256"])
def test_fields_of_another_type(files, field):
    _, facts, refused = files
    found = json.loads(facts.read_text())
    for value in WRONG:
        if isinstance(value, type(found[field])) and value in ([], {}):
            continue  # of the right type; other facts then
        facts.write_text(json.dumps({**found, field: value}))
        refused("a.json" if field != "sha256" or value != WRONG[5] else "SHA-256")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('"format": 2', f'"format": {DEEP}', "nested"),
        ('"format": 2', '"format": 2, "format": 2', "'format' is there twice"),
        ('"format": 2', '"format": 2, "more": 2', "unknown field `more`"),
        ('"format": 2', f'"format": {"1" * 5000}', "not a JSON file"),
        ('"format": 2', '"format": "\\ud800"', "surrogates"),
        ('"alpha": 6.0', '"alpha": NaN', "alpha"),
        ('"alpha": 6.0', '"alpha": 1e999', "alpha"),
        ('"alpha": 6.0', '"alpha": "6"', "alpha"),
        ('"rank": 2', f'"rank": {DEEP}', "nested"),
        ('"name": "LoRA"', '"name": "os.system"', "os.system"),
        ('"name": "LoRA"', '"name": null', "$.rules[0][1].name"),
        ('"kernel",', '"(k+)+$",', "a group with quantifiers"),
        ('"kernel",', '"(kernel",', "an open ("),
    ],
)
def test_other_texts(files, old, new, named):
    _, facts, refused = files
    text = facts.read_text()
    assert old in text
    facts.write_text(text.replace(old, new, 1))
    refused("a.json", named, readers=(read_rules, read_module))


def test_bytes_that_are_no_text(files):
    _, facts, refused = files
    for content in (b"\xff\xfe{}", b"\x00" * 10, b"", b"[]", facts.read_bytes()[:-9]):
        facts.write_bytes(content)
        refused("a.json")


def test_other_kinds_of_files(files):
    tensors, facts, refused = files
    whole = facts.read_bytes()
    for file in (facts, tensors):
        file.unlink()
        file.symlink_to("/etc/passwd")
        refused(file.name)
        file.unlink()
        file.mkdir()
        refused(file.name, error=FileNotFoundError)
        if file == facts:
            file.rmdir()
            file.write_bytes(whole)


def header(entries, length=None, data=b"\x00" * 96):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        header({}, length=2**53),
        header({}, length=2**64 - 1),
        header(DEEP.encode()),
        header({"kernel:a": entry([2**60, 2], 0, 2**63)}),
        header({"kernel:a": entry([2**40, 2**40], 0, 24)}),
        header({"kernel:a": entry([3, 2], 0, 24), "kernel:b": entry([3, 2], 0, 24)}),
        header({"kernel:a": entry([3, 2], 8, 32)}),
        header({"kernel:a": entry([3, -2], 0, 24)}),
        header({"kernel:a": entry([3, 2], 0, 24, "PICKLE")}),
    ],
)
def test_headers_are_not_trusted(files, content):
    tensors, facts, refused = files
    tensors.write_bytes(content)
    sign(tensors, facts)
    refused("a.safetensors")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kernel:a": np.zeros((3, 2))}, "float64[3, 2]"),
        ({"kernel:a": np.zeros((3, 2), "i4")}, "int32[3, 2]"),
        ({"kernel:a": np.zeros((2, 3), "f4")}, "float32[2, 3]"),
        ({"kernel:a": np.full((3, 2), np.inf, "f4")}, "not finite"),
        ({"../../kernel:a": np.zeros((3, 2), "f4")}, "../../kernel:a"),
        ({"extra": np.zeros(0, "f4")}, "extra"),
    ],
)
def test_other_arrays_under_a_true_sum(files, change, named):
    tensors, facts, refused = files
    save_file({**load_file(tensors), **change}, tensors)
    sign(tensors, facts)
    refused(named, readers=(load,))


def test_arrays_of_no_site_are_no_module(files):
    tensors, facts, refused = files
    own = load_file(tensors)
    for name in ("other:a", "extra", "kernel:a/../../x"):
        save_file({**own, name: np.zeros(2, "f4")}, tensors)
        sign(tensors, facts)
        refused(name, "a.json", readers=(read_module,))


def test_saving_a_rule_that_will_not_be_read_is_a_warning(tmp_path):
    model, x = nn.Dense(4), jnp.ones((2, 3))
    variables = model.init(jax.random.key(0), x)
    rules = {"(ker|nel)+": pj.LoRA(2, alpha=6.0)}
    peft = pj.adapt(model.apply, variables, x, rules=rules)
    adapters = peft.init(jax.random.key(1))
    with pytest.warns(UserWarning, match=r"a\.json: read_rules will refuse '\(ker"):
        save(tmp_path / "a", peft, adapters)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "a", peft), adapters)
    with pytest.raises(AdapterFileError, match=r"a\.json: '\(ker"):
        read_rules(tmp_path / "a")
