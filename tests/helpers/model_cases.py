"""The checkpoints of the model tests, edited, and how far results may be apart."""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from peftjax.models import load

DATA = Path(__file__).parents[1] / "files"
MODELS = DATA / "models"
PEFT = DATA / "peft_checkpoints"
BERT = MODELS / "bert"
EPS = float(np.finfo(np.float32).eps)
# Sequential products of the deepest model here, each rounding like a sum of its length.
STEPS = 64


def close(found, expected, where=None, eps=EPS):
    """Assert equality up to STEPS roundings."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    bound = STEPS * eps * max(np.abs(expected).max(), 1.0)
    apart = np.abs(found - expected)
    assert (apart if where is None else apart[where]).max() <= bound


def same_tree(first, second):
    """Assert that two trees agree in every bit and dtype."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def edit_config(path, **changes):
    """Change entries of a checkpoint's `config.json`."""
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def edit_tensors(path, change):
    """Let a function change a checkpoint's tensors, by name."""
    tensors = dict(load_file(path / "model.safetensors"))
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def reference(path, **options):
    """Return model, variables and the recorded inputs and outputs of a checkpoint."""
    model, variables = load(path, **options)
    with np.load(path / "io.npz") as file:
        return model, variables, dict(file)


def text_inputs(io):
    """Return the inputs of a text model."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: io[name] for name in names if name in io}


def run(model, variables, *args, **kwargs):
    """Return what the compiled model computes, hidden states included."""
    apply = partial(model.apply, output_hidden_states=True)
    return jax.jit(apply)(variables, *args, **kwargs)


def check_hidden_states(hidden, io, where):
    """Assert that all hidden states agree, on the tokens that are no padding."""
    recorded = sorted(name for name in io if name.startswith("hidden_states."))
    assert len(hidden) == len(recorded) > 1
    for found, name in zip(hidden, recorded):
        close(found, io[name], where)
