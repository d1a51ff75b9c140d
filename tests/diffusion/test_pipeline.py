"""A pipeline from its folder: prompts, and what is refused by name."""

import json
import shutil

import numpy as np
import pytest

from peftjax.data.errors import DataError
from peftjax.data.tokenizer import load_tokenizer
from peftjax.diffusion import load_pipeline
from peftjax.models import CheckpointError, UNet2DConditionModel, load, save
from tests.helpers.pipeline_case import FILES, TEXT, edit_schedule, make_pipeline

pytest.importorskip("tokenizers", reason="needs peftjax[text]")
TOKENIZER = FILES / "clip_tokenizer"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def test_ids_of_texts_are_those_of_the_original():
    tokenizer = load_tokenizer(TOKENIZER)
    recorded = json.loads((TOKENIZER / "ids.json").read_text())
    assert len(recorded) == 5
    for text, ids in recorded.items():
        assert tokenizer.encode(text).ids == ids


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", '{"tokenizer_class": "RobertaTok"}', "of RobertaTok"),
        ("tokenizer_config.json", "{", "no whole JSON"),
        ("vocab.json", '{"a": 0}', "expected <.startoftext.>"),
        ("vocab.json", "[]", "expected a JSON object"),
        ("merges.txt", "a b c", "expected two pieces"),
    ],
)
def test_a_tokenizer_that_is_not_clips(tmp_path, file, content, message):
    folder = shutil.copytree(TOKENIZER, tmp_path / "copy")
    (folder / file).write_text(content)
    with pytest.raises(DataError, match=message):
        load_tokenizer(folder)


def test_prompts_are_filled_up_and_never_cut(whole, copy):
    pipeline = load_pipeline(whole)
    ids = pipeline.prompt_ids(["a cat", ""])
    most = TEXT.max_position_embeddings
    assert ids.shape == (2, most) and ids.dtype == np.int32
    assert ids[0, :4].tolist() == [522, 320, 515, 523] and set(ids[0, 4:]) == {523}
    pipeline.prompt_ids(["a " * (most - 2)])
    message = rf"prompt 'a a.*at most {most} tokens.*found {most + 1}; shorten"
    with pytest.raises(ValueError, match=message):
        pipeline.prompt_ids(["a cat", "a " * (most - 1)])
    # Stable Diffusion 2 fills with a token of its own.
    file = copy / "tokenizer" / "tokenizer_config.json"
    kind = {"tokenizer_class": "CLIPTokenizer", "pad_token": {"content": "!"}}
    file.write_text(json.dumps(kind))
    other = load_pipeline(copy)
    assert set(other.prompt_ids([""])[0, 2:]) == {other.tokenizer.token_to_id("!")}
    file.write_text(json.dumps({**kind, "pad_token": "[PAD]"}))
    with pytest.raises(CheckpointError, match=r"pad_token '\[PAD\]'"):
        load_pipeline(copy)


@pytest.mark.parametrize("parts", [("vae",), ("tokenizer", "scheduler")])
def test_missing_parts_are_named(copy, parts):
    for part in parts:
        shutil.rmtree(copy / part)
    with pytest.raises(CheckpointError, match=f"found none called {', '.join(parts)}"):
        load_pipeline(copy)


def test_damaged_parts_are_refused_by_path(copy):
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"copy/vae.*found none"):
        load_pipeline(copy)


def test_another_prediction_is_read_or_refused(copy):
    edit_schedule(copy, prediction_type="v_prediction")
    assert load_pipeline(copy).schedule.prediction_type == "v_prediction"
    edit_schedule(copy, prediction_type="sample")
    with pytest.raises(CheckpointError, match=r"scheduler_config.json: .*sample"):
        load_pipeline(copy)


def test_parts_that_do_not_fit_each_other_are_refused(copy):
    (copy / "text_encoder_2").mkdir()
    with pytest.raises(CheckpointError, match="SDXL's two"):
        load_pipeline(copy)
    (copy / "text_encoder_2").rmdir()
    shutil.rmtree(copy / "text_encoder")
    shutil.copytree(FILES / "models" / "clip_text", copy / "text_encoder")
    with pytest.raises(CheckpointError, match="cross_attention_dim 8.*hidden_size 24"):
        load_pipeline(copy)
    shutil.rmtree(copy / "text_encoder")
    shutil.copytree(FILES / "models" / "clip", copy / "text_encoder")
    with pytest.raises(CheckpointError, match="expected a ClipText, found a Clip"):
        load_pipeline(copy)


def test_a_vocabulary_larger_than_the_table_is_refused(copy):
    model, variables = load(copy / "text_encoder")
    table = variables["params"]["text"]["token_embeddings"]
    table["embedding"] = table["embedding"][:500]
    shutil.rmtree(copy / "text_encoder")
    smaller = model.clone(config=TEXT.__class__(**{**vars(TEXT), "vocab_size": 500}))
    save(copy / "text_encoder", smaller, variables)
    with pytest.raises(CheckpointError, match="tokenizer: ids 524.*vocab_size 500"):
        load_pipeline(copy)


def test_dtype_and_recomputation_are_those_asked_for(whole):
    found = load_pipeline(whole, dtype="bfloat16", remat=True)
    assert isinstance(found.unet, UNet2DConditionModel) and found.unet.remat
    assert found.unet.dtype == found.vae.dtype == found.text_encoder.dtype
    edit = found.variables["vae"]["params"]["quant_conv"]["kernel"]
    assert str(edit.dtype) == "bfloat16" and found.factor == 2
