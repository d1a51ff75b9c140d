"""Runs that start from another run of their table."""

import json
from types import SimpleNamespace

import pytest

from experiments import starts
from experiments.plan import folder
from experiments.records import settings
from experiments.run import _started
from experiments.table import runs
from experiments.table.__main__ import main
from experiments.workdir import RESULT
from peftjax.training.loop import NonFiniteLoss
from peftjax.training.progress import silent
from tests.helpers.config_case import ROBERTA, get
from tests.helpers.report_case import failed, result

pytestmark = pytest.mark.slow

COMMAND = ["--config", "configs/glue/roberta_base.py", "--methods", "hydra"]


def of(lr=None, **choices):
    found = get(ROBERTA, ",".join(f"{key}={value}" for key, value in choices.items()))
    if lr is not None and choices["task"] == "mnli":
        found.optim.lr = lr
    return found


@pytest.fixture
def configs():
    pairs = [("hydra", "mrpc"), ("hydra", "mnli"), ("lora", "mrpc")]
    return [of(method=m, task=t, seed=s) for m, t in pairs for s in (0, 1)]


def test_runs_are_done_after_those_they_start_from(configs, tmp_path):
    found = starts.linked(tmp_path, configs, of)
    names = [(one.method, one.task, one.seed) for one in found]
    hydra = [("hydra", task, seed) for task in ("mnli", "mrpc") for seed in (0, 1)]
    assert names == [*hydra, ("lora", "mrpc", 0), ("lora", "mrpc", 1)]
    assert starts.missing(tmp_path, found) == []
    mnli, mrpc = found[0], found[2]
    assert mrpc.paths.start == str(folder(tmp_path, mnli) / "adapter")
    assert mrpc.start_run == str(folder(tmp_path, mnli).parent.relative_to(tmp_path))
    assert configs[0].paths.start == "" and "start_run" not in configs[0]


def test_the_folder_tells_the_run_it_starts_from_and_not_where_the_table_is(
    configs, tmp_path
):
    def place(workdir, of=of):
        found = starts.linked(workdir, configs, of)[2]
        assert (found.task, found.seed) == ("mrpc", 0)
        return folder(workdir, found).relative_to(workdir)

    assert place(tmp_path) == place(tmp_path / "other")
    assert place(tmp_path) != place(tmp_path, lambda **x: of(lr=0.5, **x))
    same = [settings(one) for one in starts.linked(tmp_path, configs, of)[2:4]]
    assert same[0] == same[1]  # whatever the seed
    given = configs[0].copy_and_resolve_references()
    given.paths.start = "some/adapter"
    assert starts.linked(tmp_path, [given], of) == [given]


def test_what_is_missing_is_told_before_anything_is_trained(tmp_path, capsys):
    options = ["--tasks", "mrpc", "--seeds", "1", "--workdir", str(tmp_path)]
    told = "mrpc, hydra, seed 0: starts from the adapter of mnli"
    with pytest.raises(SystemExit, match=f"NothingToStartFrom: {told}") as caught:
        main([*COMMAND, *options])
    assert len(str(caught.value.code).splitlines()) == 1
    assert not list(tmp_path.iterdir())
    main([*COMMAND, *options, "--dry-run"])
    assert f"MISSING: {told}" in capsys.readouterr().out
    main([*COMMAND, "--tasks", "mrpc,mnli", "--dry-run"])
    assert "MISSING" not in capsys.readouterr().out


def test_a_run_waits_for_another_worker_and_fails_with_its_start(configs, tmp_path):
    mnli, _, mrpc, *_ = starts.linked(tmp_path, configs, of)
    assert not starts.ready(mrpc) and not runs.done(tmp_path, mrpc, None, None, silent)
    place = folder(tmp_path, mnli)
    place.mkdir(parents=True)
    (place / RESULT).write_text(json.dumps(result("mnli", "hydra", 0, 0.5)))
    assert starts.ready(mrpc)
    assert starts.missing(tmp_path, [mrpc]) == []
    (place / RESULT).write_text(json.dumps(failed("mnli", "hydra", 0)))
    with pytest.raises(NonFiniteLoss, match=r"starts from .*mnli.*, which failed"):
        _started(SimpleNamespace(config=mrpc))
