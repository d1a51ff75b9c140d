"""Received checkpoints: what they say is checked before it is believed."""

import shutil
import warnings
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.models import CheckpointError, load
from peftjax.models.files import finite
from tests.helpers.model_cases import BERT, MODELS, edit_tensors


@pytest.fixture
def bert(copy):
    return copy(BERT)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'{{"model_type": {DEEP}}}', "nested too deep"),
        ('{"model_type": "bert", "model_type": "bert"}', "'model_type' is there twice"),
        ('{"model_type": "\\ud800"}', "surrogates"),
        (f'{{"hidden_size": {"1" * 5000}}}', "not a JSON file"),
        ('{"model_type": "bert", "layer_norm_eps": 1e999}', "layer_norm_eps"),
        ('{"model_type": "bert", "layer_norm_eps": NaN}', "layer_norm_eps"),
    ],
)
def test_other_texts_of_the_configuration(bert, text, message):
    (bert / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(bert)
    assert str(bert) in str(caught.value) and len(str(caught.value)) < 600


def test_json_that_is_too_large_is_not_read(bert):
    with (bert / "config.json").open("r+b") as file:
        file.truncate(2**27)  # a hole, which takes no room
    with pytest.raises(
        CheckpointError, match="at most 67108864 bytes, found 134217728"
    ):
        load(bert)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_pass_only_if_asked(bert, dtype, value):
    name = "encoder.layer.1.output.dense.weight"

    def spoil(tensors):
        for key in tensors:
            tensors[key] = tensors[key].astype(dtype)
        tensors[name][3, 5] = value

    edit_tensors(bert, spoil)
    match = "layers_1/output/kernel: holds NaN or infinity.*allow_nonfinite=True"
    with pytest.raises(CheckpointError, match=match) as caught:
        load(bert)
    assert "model.safetensors" in str(caught.value)
    _, variables = load(bert, allow_nonfinite=True)
    found = variables["params"]["layers_1"]["output"]["kernel"]
    assert found.dtype == dtype and not np.isfinite(float(found[5, 3]))


@pytest.mark.filterwarnings("ignore:overflow")
def test_values_that_the_chosen_type_cannot_hold_are_told(bert):
    name = "pooler.dense.bias"
    edit_tensors(bert, lambda t: t.update({name: t[name] + 1e6}))
    load(bert)
    with pytest.raises(CheckpointError, match="pooler/bias: .* as float16"):
        load(bert, dtype="float16")


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_every_bit_pattern_of_two_bytes(dtype):
    values = np.arange(2**16, dtype=np.uint16).view(dtype).reshape(256, 256)
    expected = np.isfinite(values.astype(np.float32)).all(axis=1)
    assert [finite(row) for row in values] == expected.tolist()
    assert finite(values.T[:0]) and not finite(values.T)


def test_an_array_that_is_there_twice(tmp_path):
    shutil.copy(MODELS / "vit" / "google.npz", tmp_path)
    file = tmp_path / "google.npz"
    with zipfile.ZipFile(file) as archive:
        name = archive.namelist()[0]
        content = archive.read(name)
    with warnings.catch_warnings(), zipfile.ZipFile(file, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(name, content)
    with pytest.raises(
        CheckpointError, match=r"google\.npz: expected every array once"
    ):
        load(file)


def test_a_head_for_answers_gets_the_true_reason(bert):
    head = {"weight": np.zeros((2, 24), "f"), "bias": np.zeros(2, "f")}
    head = {f"qa_outputs.{name}": value for name, value in head.items()}
    edit_tensors(bert, lambda tensors: tensors.update(head))
    with pytest.raises(CheckpointError, match="a head for answers in a text"):
        load(bert)
    model, _ = load(bert, head=3)
    assert model.head == 3
