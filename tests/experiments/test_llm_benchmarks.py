"""The benchmarks of language models, on a tiny one with drawn weights and texts."""

import json

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs peftjax[text]")

from configs.llm.smollm2_gsm8k import get_config
from experiments.benchmarks import llm_case, llm_packed, llm_quantised
from tests.helpers.llm_case import SETTINGS

pytestmark = pytest.mark.slow


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Return what a benchmark writes."""

    def tiny(argument):
        config = get_config(argument)
        config.model.settings = {**SETTINGS, "hidden_size": 64, "head_dim": 16}
        return config

    monkeypatch.setattr(llm_case, "get_config", tiny)
    monkeypatch.setattr(llm_quantised, "STEPS", 2)
    out = tmp_path / "out.json"

    def run(benchmark):
        flags = ["--drawn", "--dtype", "float32", "--rounds", "1", "--out", str(out)]
        benchmark.main(flags)
        return json.loads(out.read_text())

    return run


def test_a_base_in_codes_is_smaller_and_learns_alike(measured):
    found = measured(llm_quantised)["bases"]
    half, nf4 = found["bfloat16"], found["NF4, double"]
    assert nf4["kernel_bytes"] < 0.28 * half["kernel_bytes"]
    assert nf4["temporary_bytes"] < 1.1 * half["temporary_bytes"]
    for own in found.values():
        assert np.abs(np.subtract(own["losses"], half["losses"])).max() < 0.05
        assert own["losses"] != half["losses"] or own is half


def test_texts_packed_and_padded_have_one_loss(measured):
    found = measured(llm_packed)
    layouts = found["layouts"]
    assert len({own["learned"] for own in layouts.values()}) == 1
    losses = [own["loss"] for own in layouts.values()]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
    computed = [layouts[name]["computed"] for name in ("packed", "buckets", "padded")]
    assert found["tokens"] <= computed[0] < computed[1] <= computed[2]
