"""A run of AdaLoRA: its schedule is as long as the run."""

import pytest

import peftjax as pj
from experiments import finetune
from experiments.checks import UnfitSettings
from experiments.programs import ProgramCache
from experiments.run import Run
from experiments.tasks import from_scratch
from peftjax.hub import files
from peftjax.parallel.mesh import make_mesh
from tests.experiments.test_quickstart import small

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(from_scratch, "mesh_of", lambda config: make_mesh(data=1))


def with_rule(config, method):
    rules = tuple((p, pj.Full() if p == "head/.*" else method) for p, _ in config.rules)
    with config.unlocked(), config.ignore_type():
        config.rules = rules
    return config


def test_ranks_are_taken_away_over_the_run(tmp_path):
    config = small(tmp_path / "cache", "method=adalora", measure=False)
    cache = ProgramCache(make_mesh(data=1))
    found = finetune.run(config, tmp_path / "run", cache=cache)
    assert found["status"] == "finished" and found["method"] == "adalora"
    (method,) = {
        rule
        for rule in files.read_rules(tmp_path / "run" / "adapter").values()
        if isinstance(rule, pj.AdaLoRA)
    }
    assert method.total_steps == found["selected_step"]
    one = Run(config, cache)
    adapters = files.load(tmp_path / "run" / "adapter", one.peft, one.base)
    masks = [p["mask"].sum() for p in adapters.values() if "mask" in p]
    assert len(masks) == 4 and sum(masks) <= 4 * method.target_rank
    assert one.score(adapters, one.data.test) == found["scores"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"total_steps": 7}, r"total_steps=7: expected \d+, the updates of the run"),
        ({"warmup": 1000}, r"warmup \+ final, 1000 \+ 0"),
    ],
)
def test_a_schedule_that_is_not_the_run_s_is_one_line(tmp_path, changes, told):
    method = pj.AdaLoRA(4, 8.0, 2, **changes)
    config = with_rule(small(tmp_path / "cache", "method=adalora"), method)
    with pytest.raises(UnfitSettings, match=told) as caught:
        finetune.run(config, tmp_path / "run", cache=ProgramCache(make_mesh(data=1)))
    assert len(str(caught.value).splitlines()) == 1
