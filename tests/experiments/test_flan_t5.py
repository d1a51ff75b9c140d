"""Instruction tuning of a T5: rows taken apart, and a run from files to its exam."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs peftjax[text]")

from configs.llm import composition_flan_t5
from experiments import finetune, outlook, tasks
from experiments.checks import UnfitSettings
from experiments.hparams import lines
from experiments.programs import ProgramCache
from experiments.tasks import llm, seq2seq
from peftjax.models import T5, T5Config, lm_loss, save
from peftjax.parallel.mesh import make_mesh
from tests.helpers.config_case import get
from tests.helpers.llm_case import FOLDER
from tests.helpers.model_cases import close

pytestmark = pytest.mark.slow

SETTINGS = {
    "vocab_size": 64,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 32,
    "num_layers": 1,
    "num_decoder_layers": 2,
    "num_heads": 4,
}


@pytest.fixture(scope="module")
def tiny():
    model = T5(T5Config(**SETTINGS), scan_layers=True)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 2), jnp.int32))
    return model, variables


def test_a_row_loses_what_its_source_and_target_lose_apart(tiny):
    model, variables = tiny
    ids = np.array([[9, 8, 7, 5, 4, 2, 0, 0], [6, 3, 5, 9, 7, 8, 4, 2]])
    learned = np.array([[0, 0, 0, 1, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]])
    batch = {"input_ids": ids, "token_mask": learned, "segment_ids": ids > 0}

    def apply(*args):
        return model.apply(variables, *args)

    found = jax.jit(lambda b: llm.outputs(apply, b, logits=seq2seq.logits))(batch)
    for row, (source, target) in enumerate([([9, 8, 7], [5, 4, 2]), ([6], [3, 5])]):
        target = jnp.array([[0, *target]])
        logits = apply(jnp.array([source]), None, target)
        sums, count, right = found["outputs"][row]
        assert count == target.shape[1] - 1
        close(sums / count, lm_loss(logits, target))
        assert right == (logits[:, :-1].argmax(-1) == target[:, 1:]).sum()


def config(place, **changes):
    found = composition_flan_t5.config("navigate", "lora", 0)
    found.task = "less"
    found.model.settings = {**SETTINGS, "model_type": "t5"}
    found.paths.update({"model": str(place / "model"), "data": str(place)})
    found.paths.cache = str(place / "cache")
    found.data.update({"max_length": 64, "buckets": (32,), "tasks": ("less",)})
    found.train.update({"epochs": 3, "eval_epochs": 3, "eval_batch": 4})
    found.exam.update({"examples": 4, "steps": 4, "batch": 4})
    found.data.update(changes)
    return found


def test_a_run_is_trained_and_examined_by_exact_answers(tmp_path, tiny):
    save(tmp_path / "model", *tiny)
    text = (FOLDER / "tokenizer.json").read_text()
    (tmp_path / "model" / "tokenizer.json").write_text(text)
    (tmp_path / "bbh").mkdir()
    rows = [{"input": f"is {a} less?", "target": f"{a % 2}"} for a in range(12)]
    (tmp_path / "bbh" / "less.json").write_text(json.dumps({"examples": rows}))
    cache = ProgramCache(make_mesh(data=1))
    result = finetune.run(config(tmp_path), tmp_path / "run", cache=cache)
    assert result["status"] == "finished" and result["metric"] == "average"
    assert np.isfinite(result["scores"]["loss"])
    assert 0 <= result["scores"]["less"] <= 1
    # q and v: of the encoder's layer, and twice of each of the decoder's two
    assert result["trainable"] == (2 + 2 * 4) * 16 * (16 + 16)
    told = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().split("\n")[0])
    assert told["weight"] == 5 * 2  # a figure and the end of each of five targets


def test_packed_rows_are_refused(tmp_path):
    one = config(tmp_path, pack=64)
    with pytest.raises(UnfitSettings, match="data.pack=64: expected 0"):
        tasks.family(one).outline(one)


def test_the_module_is_lorahubs():
    one = get("llm.composition_flan_t5", "method=lora")
    assert outlook.prospect(one).trainable == 4_718_592
    learned = get("llm.composition_flan_t5", "method=learned")
    assert outlook.prospect(learned).trainable == 4 * 144
    rows = [row for row in lines("llm_composition") if row["experiment"] == "LoraHub"]
    told = {row["key"]: row["value"] for row in rows}
    lora = one.rules[0][1]
    settings = f"r={lora.rank}, alpha={lora.alpha:g}, dropout {lora.dropout:g}"
    assert told["LoRA of a module"].startswith(settings)
    assert told["backbone"] == "FLAN-T5-large"
    assert float(told["module training"].split()[1].rstrip(",")) == one.optim.lr
