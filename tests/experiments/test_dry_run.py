"""The dry run: what is built, what it counts, and what it says of published counts."""

import json

import numpy as np
import pytest

from experiments import outlook
from experiments.checks import UnfitSettings
from experiments.documents import DamagedFile
from experiments.table.__main__ import main
from peftjax.data import vtab
from tests.helpers.config_case import DEBERTA, ROBERTA, VIT, get, tiny

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "method", "size", "verdict"),
    [
        (ROBERTA, "hydra", 331_776, "agrees, head not counted"),
        (ROBERTA, "lora", 294_912, "agrees, head not counted"),
        (DEBERTA, "hra0", 663_552, "agrees, head not counted"),
        (DEBERTA, "lora", 1_327_104, "agrees, head not counted"),
    ],
)
def test_counts_on_glue_agree_with_the_published_ones(name, method, size, verdict):
    configs = [get(name, f"task={task},method={method}") for task in ("stsb", "mnli")]
    plans = outlook.Plans()
    runs = [outlook.prospect(config, plans) for config in configs]
    (found,) = outlook.compare(runs, configs[0].table)
    assert found.without_head == (size, size) and found.verdict == verdict
    if method == "hra0":  # the released code freezes the head
        assert runs[0].trainable == runs[1].trainable == size
    else:
        assert runs[1].trainable - runs[0].trainable == 2 * 769  # outputs: 1 and 3
    # Two moments, the count and the numbers of the schedule.
    assert 2 * size < runs[0].optimizer - 2 * (runs[0].trainable - size) < 2 * size + 20


def test_counts_on_vtab_agree_with_the_published_ones():
    configs = [get(VIT, f"task={task},method=linear") for task in vtab.TASKS]
    configs.append(get(VIT, "task=cifar,method=hydra"))
    plans = outlook.Plans()
    *linear, hydra = (outlook.prospect(config, plans) for config in configs)
    (found,) = outlook.compare(linear, configs[0].table)
    assert found.verdict == "agrees, head counted, mean of 19 tasks"
    assert hydra.without_head == 239_712
    mean = hydra.without_head + np.mean([run.trainable for run in linear])
    assert f"{mean / 1e6:.2f}" == "0.28" and round(mean) == 277_757


def test_another_count_is_said_to_differ_with_the_reason():
    table = get(VIT).table
    run = outlook.Prospect(
        "cifar", "ssf", 300_000, 167_424, 1, 1, False, (0.0, 0.0, 0.0)
    )
    (found,) = outlook.compare([run], table)
    assert found.published == "0.22" and found.verdict.startswith("differs: SSF scales")


def test_a_warmup_longer_than_the_run_is_an_error():
    config = tiny(DEBERTA, "task=rte,method=hra0")
    config.optim.warmup = 10_000
    with pytest.raises(UnfitSettings, match="warmup=10000.*11 epochs or 847 steps"):
        outlook.prospect(config)


def test_the_dry_run_reads_nothing_and_is_written(tmp_path, capsys):
    configs = [
        tiny(ROBERTA, f"task={task},method={method},seed={seed}")
        for method in ("full", "hydra")
        for task in ("mrpc", "stsb")
        for seed in (0, 1)
    ]
    outlook.show(configs, tmp_path)
    assert "4 runs build" in capsys.readouterr().out
    written = json.loads((tmp_path / outlook.FILE).read_text())
    assert [run["task"] for run in written["runs"]] == 2 * ["mrpc", "stsb"]
    assert [one["method"] for one in written["methods"]] == ["full", "hydra"]
    outlook.show(configs[:1], tmp_path)  # its own is replaced
    for text in ("{}", "mine", '{"kind": "x"}', "[" * 10**5):
        (tmp_path / outlook.FILE).write_text(text)
        with pytest.raises(DamagedFile, match=r"dry_run\.json: .*not a dry run's"):
            outlook.show(configs[:1], tmp_path)
        assert (tmp_path / outlook.FILE).read_text() == text


def test_the_dry_run_of_the_table(capsys):
    config = ["--config", "configs/glue/roberta_base.py"]
    for dry_run in ("--dry_run", "--dry-run"):
        main([dry_run, "--tasks", "mrpc", "--methods", "hydra", *config])
        assert "0.3 M  agrees, head not counted" in capsys.readouterr().out


def test_steps_are_counted_by_the_data_that_is_there(tmp_path, capsys):
    pytest.importorskip("tensorflow_datasets", reason="needs peftjax[data]")
    from peftjax.data import glue_files
    from tests.helpers.glue_case import write_task

    config = tiny(ROBERTA, "task=mrpc,method=linear,start=fresh")
    config.paths.data = str(tmp_path / "data")
    batch, epochs = config.train.batch, config.train.epochs
    assert outlook.prospect(config).steps == epochs * (3668 // batch)
    counts = {"train": 3 * batch, "validation": 5, "test": 5}
    write_task(tmp_path / "source", "mrpc", counts)
    glue_files.prepare("mrpc", tmp_path / "source", tmp_path / "data")
    found = outlook.prospect(config)
    assert found.steps == epochs * 3 and found.counted
    outlook.show([config])
    assert "steps: 1 of 1 runs by the data there" in capsys.readouterr().out
