"""The cache of tokens: what is damaged, swapped or too large is refused by name."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest

from peftjax.data import npz, token_cache
from peftjax.data.errors import DataError
from peftjax.data.token_cache import Cached, cached
from peftjax.data.tokenizer import Tokens

STARTS = np.array([0, 4, 9])
TOKENS = Tokens(np.arange(9, dtype="i4"), np.zeros(9, "i1"), STARTS)
ENTRY = Cached(TOKENS, np.array([0, 1], "i4"), {"examples": 2})


def fail():
    raise AssertionError("it was made anew")


@pytest.fixture
def file(tmp_path):
    cached(lambda: ENTRY, tmp_path, ("key",))
    (path,) = tmp_path.iterdir()
    return path


def read(file):
    return cached(fail, file.parent, ("key",))


def test_an_entry_is_read_back(file):
    found = read(file)
    for one, other in zip([*ENTRY.tokens, ENTRY.labels], [*found.tokens, found.labels]):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    assert found.fingerprint == ENTRY.fingerprint


def npy(array):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True)
    return stream.getvalue()


def header(shape, descr="<i4"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def rewrite(file, changes):
    """Replace members of an npz file by others, or drop them."""
    with zipfile.ZipFile(file) as old:
        members = {name: old.read(name) for name in old.namelist()}
    for name, change in changes.items():
        new = change(members) if callable(change) else change
        members.pop(name, None)
        members |= {} if new is None else {name: new}
    with zipfile.ZipFile(file, "w") as new:
        for name, content in members.items():
            new.writestr(name, content)


DAMAGE = {
    "no array": {"ids.npy": b"hello"},
    "empty": {"ids.npy": b""},
    "8 PiB": {"ids.npy": header("(1125899906842624, 2)") + bytes(36)},
    "negative": {"ids.npy": header("(-9,)") + bytes(36)},
    "a tuple of types": {"ids.npy": header("(9,)", "|O") + bytes(72)},
    "pickled": {"ids.npy": npy(np.array([{"x": 1}] * 9, object))},
    "cast": {"ids.npy": npy(TOKENS.ids.astype("i8"))},
    "cast labels": {"labels.npy": npy(np.array([0, 1], "f4"))},
    "two axes": {"ids.npy": npy(TOKENS.ids[None])},
    "other values": {"ids.npy": npy(TOKENS.ids + 1)},
    "swapped": {
        "ids.npy": lambda m: m["labels.npy"],
        "labels.npy": npy(TOKENS.ids),
    },
    "absent": {"types.npy": None},
    "one more": {"more.npy": npy(np.zeros(2))},
    "no array among them": {"readme.txt": b"hello"},
    "version 9": {"ids.npy": lambda m: m["ids.npy"][:6] + b"\x09" + m["ids.npy"][7:]},
    "code": {"ids.npy": b"\x93NUMPY\x01\x00\x14\x00__import__('os').x()"},
}


@pytest.mark.parametrize("changes", DAMAGE.values(), ids=DAMAGE)
def test_members_that_are_not_what_was_written(file, changes):
    rewrite(file, changes)
    with pytest.raises(DataError, match="delete it, and it is made again") as error:
        read(file)
    assert str(error.value).startswith(str(file)) and len(str(error.value)) < 800


def test_nothing_is_allocated_for_a_header_of_8_pib(file, monkeypatch):
    def read_array(*_, **__):
        raise AssertionError("an array was read")

    monkeypatch.setattr(npz.npy, "read_array", read_array)
    rewrite(file, DAMAGE["8 PiB"])
    with pytest.raises(
        DataError, match=r"ids: the header says int32 \[1125899906842624"
    ):
        read(file)


def test_an_array_that_grows_when_read_is_refused(file):
    arrays = {**TOKENS._asdict(), "labels": ENTRY.labels}
    arrays |= {"ids": np.zeros(10**7, "i4"), "fingerprint": np.array("{}")}
    np.savez_compressed(file, **arrays, sha256=np.array("0"))
    with pytest.raises(DataError, match="found compressed ones"):
        read(file)
    np.savez(file, **(arrays | {"fingerprint": np.full((9, 9), "x")}), sha256="0")
    with pytest.raises(DataError, match="fingerprint: expected a text, found <U1"):
        read(file)


def test_a_fingerprint_that_is_no_object(file):
    for text in ("[" * 100_000, "[1]", "{"):
        arrays = {**TOKENS._asdict(), "labels": ENTRY.labels}
        arrays["fingerprint"] = np.array(text)
        np.savez(file, **arrays, sha256=np.array(token_cache._digest(arrays)))
        with pytest.raises(DataError, match="expected a JSON object"):
            read(file)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"x" * 500])
def test_files_that_are_no_zip(file, content):
    file.write_bytes(content)
    with pytest.raises(DataError, match="not a whole npz file"):
        read(file)
    file.write_bytes(json.dumps({}).encode())
    with pytest.raises(DataError, match="not a whole npz file"):
        read(file)
