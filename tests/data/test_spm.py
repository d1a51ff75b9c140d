"""DeBERTa's `spm.model`: the ids that SentencePiece itself gives, in DeBERTa's form."""

import json
import shutil

import pytest

from peftjax.data import tokenizer
from peftjax.data.errors import DataError
from tests.helpers.glue_case import sentence

spm = pytest.importorskip("sentencepiece", reason="needs peftjax[text]")
pytest.importorskip("tokenizers", reason="needs peftjax[text]")
sentencepiece_model_pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")

TEXTS = [
    "the cat sat on the mat",
    "  two  spaces, and a tab\there ",
    "ﬁne naïve ＦＵＬＬ width",
    "unknown 日本 letters",
    "",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a model trained like DeBERTa's."""
    return train(tmp_path_factory.mktemp("spm"), "unigram")


def train(path, kind, start="[CLS]"):
    text = path / "text.txt"
    text.write_text("\n".join(sentence(i, 9) + " fine full width" for i in range(200)))
    spm.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(path / "spm"),
        vocab_size=60,
        hard_vocab_limit=False,
        model_type=kind,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece=start,
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        minloglevel=2,
    )
    return path


def test_ids_are_those_of_sentencepiece(folder):
    loaded = tokenizer.load_tokenizer(folder)
    original = spm.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    tokens = tokenizer.encode(loaded, [TEXTS], 64)
    rows = [tokens.ids[a:b].tolist() for a, b in zip(tokens.starts, tokens.starts[1:])]
    assert rows == [[1, *original.encode(text), 2] for text in TEXTS]
    assert len(set(tokens.ids.tolist())) > 15
    assert 3 in rows[3]
    assert tokenizer.pad_id(loaded) == 0
    assert loaded.token_to_id("[MASK]") == original.get_piece_size()


def test_pairs_and_special_tokens(folder):
    loaded = tokenizer.load_tokenizer(folder / "spm.model")
    first, second = (loaded.encode(t, add_special_tokens=False).ids for t in TEXTS[:2])
    pair = loaded.encode(*TEXTS[:2])
    assert pair.ids == [1, *first, 2, *second, 2]
    assert pair.type_ids == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert loaded.encode("a [SEP] b", add_special_tokens=False).ids.count(2) == 1


def test_a_tokenizer_json_goes_first(folder, tmp_path):
    loaded = tokenizer.load_tokenizer(folder)
    loaded.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "spm.model").write_bytes(b"")
    again = tokenizer.load_tokenizer(tmp_path)
    assert [again.encode(t).ids for t in TEXTS] == [loaded.encode(t).ids for t in TEXTS]


def test_files_that_do_not_fit_are_named(folder, tmp_path):
    file = tmp_path / "spm.model"
    content = (folder / "spm.model").read_bytes()
    for damaged in (b"", content[:5000], b"x" * 99):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"spm\.model: "):
            tokenizer.load_tokenizer(tmp_path)
    file.write_bytes(content)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"do_lower_case": True}))
    with pytest.raises(ValueError, match="do_lower_case: expected false"):
        tokenizer.load_tokenizer(tmp_path)
    settings.write_text("[1]")
    with pytest.raises(ValueError, match="expected a JSON object"):
        tokenizer.load_tokenizer(tmp_path)
    settings.unlink()
    train(tmp_path, "bpe")
    with pytest.raises(ValueError, match="of the unigram kind"):
        tokenizer.load_tokenizer(tmp_path)
    train(tmp_path, "unigram", start="<s>")
    with pytest.raises(ValueError, match=r"found no \[CLS\]"):
        tokenizer.load_tokenizer(tmp_path)


def test_files_one_after_the_other_and_cut_files_are_refused(folder, tmp_path):
    content = (folder / "spm.model").read_bytes()
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(content)
    damaged = [(content + content, "twice")]
    cut = sentencepiece_model_pb2.ModelProto()
    cut.CopyFrom(model)
    cut.ClearField("normalizer_spec")
    damaged.append((cut.SerializeToString(), "cut short"))
    model.trainer_spec.unk_id = 7
    damaged.append((model.SerializeToString(), "unknown pieces at"))
    model.trainer_spec.unk_id = 3
    model.pieces[9].score = float("nan")
    damaged.append((model.SerializeToString(), "not finite"))
    for changed, told in damaged:
        (tmp_path / "spm.model").write_bytes(changed)
        with pytest.raises(DataError, match=rf"spm\.model: .*{told}"):
            tokenizer.load_tokenizer(tmp_path)


def test_settings_that_are_nested_too_deep(folder, tmp_path):
    shutil.copy(folder / "spm.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"tokenizer_config\.json: expected a JSON obj"):
        tokenizer.load_tokenizer(tmp_path)
