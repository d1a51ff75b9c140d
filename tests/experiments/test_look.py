"""What a run leaves to look at, and the two pictures of it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from experiments import look, report
from experiments.documents import DamagedFile
from experiments.report import gallery, tokens
from experiments.report.rows import table
from experiments.report.runs import read
from peftjax.models import vit
from peftjax.models.layers import stack_layers
from tests.helpers.report_case import fill, result

MODEL = vit("Ti/4", image_size=8, width=16, depth=3, num_heads=2, num_classes=3)


@pytest.mark.slow
def test_lengths_are_those_of_tokens_after_each_layer():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)
    variables = MODEL.init(jax.random.key(0), x)
    rules = {r"blocks_1/mlp/fc2/kernel": pj.LoRA(2, alpha=3.0)}
    peft = pj.adapt(MODEL.apply, variables, x, rules=rules)
    fresh = peft.init(jax.random.key(1), variables)
    moved = jax.tree.map(lambda leaf: leaf + 1.0, fresh)

    def outputs(apply, batch):
        return {"outputs": apply(batch["image"])}

    def lengths(apply, *given):
        return look.token_lengths(
            outputs,
            lambda *args, **options: apply(*given, *args, **options),
            {"image": x},
        )

    before = lengths(MODEL.apply, variables)
    _, state = MODEL.apply(variables, x, capture_intermediates=True, mutable=True)
    block = state["intermediates"]["blocks_2"]["__call__"][0][0]
    assert before[2] == pytest.approx(np.linalg.norm(block, axis=-1).mean(), rel=1e-5)
    np.testing.assert_allclose(lengths(peft.apply, variables, fresh), before, rtol=1e-4)
    after = lengths(peft.apply, variables, moved)
    assert len(after) == 3 and after[0] == pytest.approx(before[0], rel=1e-4)
    assert abs(after[1] - before[1]) > 0.1

    scanned = MODEL.clone(scan_layers=True)
    stacked = stack_layers(variables, "blocks")
    np.testing.assert_allclose(lengths(scanned.apply, stacked), before, rtol=1e-5)

    class Flat(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x.mean((1, 2)))

    flat = Flat()
    assert lengths(flat.apply, flat.init(jax.random.key(0), x)) == []


def test_mistakes_are_the_first():
    images = np.arange(30, dtype=np.uint8)[:, None, None, None] * np.ones(
        (2, 2, 3), "u1"
    )
    labels = np.arange(30) % 2
    found = look.mistakes({"image": images, "label": labels}, np.eye(2)[[0] * 30])
    assert found["images"][:, 0, 0, 0].tolist() == [*range(1, 2 * look.WRONG, 2)]
    assert set(found["labels"]) == {1} and set(found["answers"]) == {0}
    named = look.mistakes(
        {"image": images, "label": labels}, np.eye(2)[[0] * 30], ("cat", "dog")
    )
    assert set(named["labels"]) == {"dog"} and set(named["answers"]) == {"cat"}
    none = look.mistakes({"image": images, "label": labels}, np.eye(2)[labels])
    assert none["images"].shape == (0, 2, 2, 3)


def left(place, count):
    pixels = np.full((count, 4, 4, 3), 9, np.uint8)
    numbers = np.arange(count)
    np.savez(place, images=pixels, labels=numbers, answers=numbers + 1)


def test_the_pictures_of_a_table(tmp_path, monkeypatch):
    lengths = {"before": [1.0, 2.0], "after": [1.0, 4.0]}
    runs = [
        result("pets", "lora", 0, 0.5, token_lengths=lengths),
        result("pets", "lora", 1, 0.5, token_lengths={**lengths, "after": [1.0, 2.0]}),
        result("pets", "hra", 0, 0.5),
    ]
    fill(tmp_path, runs)
    place = tmp_path / "pets" / "lora-a1b2c3d4e5"
    left(place / "seed0" / "mistakes.npz", 3)
    left(place / "seed1" / "mistakes.npz", 2)
    left(tmp_path / "pets" / "hra-a1b2c3d4e5" / "seed0" / "mistakes.npz", 0)
    plan, found = read(tmp_path)
    made = table("a_table", found, plan["table"])
    ((title, before, after),) = tokens.panels(made)
    assert title == "pets" and before.tolist() == [1, 2]
    assert {name: x.tolist() for name, x in after.items()} == {"lora": [1, 3]}
    lines = tokens.draw(tokens.panels(made)).axes[0].lines
    assert [line.get_ydata().tolist() for line in lines] == [[1, 2], [1, 3]]

    lines = gallery.rows(tmp_path, made)
    assert [(x[0], len(x[1])) for x in lines] == [("pets, lora", 3), ("pets, hra", 0)]
    figure = gallery.draw(lines)
    assert [x.get_title() for x in figure.axes[:3]] == [
        f"{i}, not {i + 1}" for i in range(3)
    ]
    monkeypatch.setattr(report.plot, "png", lambda *_: b"no picture")
    report.write(tmp_path)
    for name in ("gallery.png", "tokens.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    (place / "seed0" / "mistakes.npz").write_bytes(b"PK")
    with pytest.raises(DamagedFile, match=r"mistakes\.npz.*experiments.table again"):
        report.write(tmp_path)
