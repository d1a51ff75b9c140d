"""LoRA on a language model loses what the torch library loses, from equal factors."""

import jax
import numpy as np
import optax
import pytest

import peftjax as pj
from peftjax.models import load
from peftjax.models.lm_loss import lm_losses
from peftjax.parallel.mesh import make_mesh
from peftjax.training.state import create_state
from peftjax.training.step import make_step
from tests.helpers.model_cases import DATA, MODELS


@pytest.mark.parametrize("packed", [False, True])
def test_thirty_losses_are_those_of_the_torch_side(packed):
    with np.load(DATA / "llm" / "curve.npz") as file:
        told = dict(file)
    ids, token, learned, expected = map(told.pop, ("ids", "token", "learned", "losses"))
    model, variables = load(MODELS / "llama3")
    rules = {r".*/(q|v|down)_proj/kernel": pj.LoRA(rank=4, alpha=6.0)}
    peft = pj.adapt(model.apply, variables, np.ones((1, 4), np.int32), rules=rules)
    adapters = peft.init(jax.random.key(0))
    for name, a in told.items():
        layer, _, part = name.removeprefix("layers.").partition(".")
        path = f"layers_{layer}/{part.replace('.', '/')}/kernel"
        assert np.abs(np.asarray(adapters[path]["b"])).max() == 0
        adapters[path] = {**adapters[path], "a": a.T}
    assert len(told) == len(adapters)

    def loss(apply, batch, key):
        logits = apply(batch["input_ids"], segment_ids=batch["segment_ids"])
        return lm_losses(logits, batch["input_ids"])[0]

    mesh = make_mesh(devices=jax.devices()[:1])
    descent = optax.adamw(1e-2, weight_decay=0.0)
    step = make_step(peft, descent, loss, mesh)
    state = create_state(peft, descent, jax.random.key(0), mesh, adapters=adapters)
    base, losses = step.shard_base(variables), []
    for number in range(len(expected)):
        row = number % len(ids)
        batch = {
            "input_ids": ids[row].astype(np.int32),
            "segment_ids": token[row].astype(np.int32),
            "token_mask": learned[row].astype(np.int32),
        }
        state, metrics = step(state, base, pairs(batch) if packed else batch)
        losses.append(float(metrics["loss"]))
    assert expected[-1] < 0.9 * expected[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def pairs(batch):
    """Put two texts, of any length, into each row."""
    found = {}
    for name, rows in batch.items():
        rows = rows * np.array([[1], [2]] * 2) if name == "segment_ids" else rows
        rows = np.where(batch["segment_ids"] > 0, rows, 0)
        found[name] = rows.reshape(2, -1).astype(np.int32)
    return found
