"""The search as a command, on a model small enough for a test."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

import peftjax as pj
from configs.quickstart import get_config
from experiments import finetune, report, table
from experiments.checks import UnfitSettings
from experiments.documents import DamagedFile
from experiments.plan import folder as run_folder
from experiments.plan import plan
from experiments.preemption import Stopped
from experiments.programs import ProgramCache
from experiments.run import Run
from experiments.search import compare, run
from experiments.search.__main__ import main
from experiments.search.pictures import front
from experiments.search.supernet import changed, supernet
from experiments.search.work import ON_TEST
from experiments.tasks import digits, from_scratch
from peftjax import storage
from peftjax.hub import files
from peftjax.parallel.mesh import make_mesh
from peftjax.search import Candidate, Space
from peftjax.training.loop import Preempted
from tests.experiments.test_quickstart import SMALL

pytestmark = pytest.mark.slow

FEW = {
    "population": 6,
    "generations": 2,
    "parents": 2,
    "mutants": 2,
    "crossovers": 2,
    "p": 0.2,
}
LIMIT = 1500
FILES = {
    "search.json",
    "supernet",
    "result.json",
    "archive.png",
    "structure.png",
    "adapter.json",
    "adapter.safetensors",
    "merged.safetensors",
    "claim.lock",
    "settings.json",
}


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        # eight fake devices are slow
        patch.setattr(from_scratch, "mesh_of", lambda config: make_mesh(data=1))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("search")


def small(folder, arg="method=glora", **changes):
    config = get_config(arg)
    paths = {"paths.cache": str(folder / "cache")}
    config.update_from_flattened_dict({**SMALL, **paths, **changes})
    return config


def search(config, place, **settings):
    mesh = make_mesh(data=1)
    return run(config, place, LIMIT, mesh=mesh, **{**FEW, **settings})


@pytest.fixture(scope="module")
def whole(folder):
    """A finished search and its result."""
    place = folder / "whole"
    return place, search(small(folder), place)


def state(place):
    return json.loads((place / "search.json").read_text())


def test_a_search_leaves_its_files_and_result(whole):
    place, result = whole
    assert {path.name for path in place.iterdir()} == FILES
    assert result == json.loads((place / "result.json").read_text())
    assert result["method"] == "glora_search" and result["note"] == "test split"
    found = result["search"]
    assert found["evaluated"] == len(state(place)["archive"]) == 18
    assert found["parameters"] == result["trainable_without_head"] <= LIMIT
    best = max(state(place)["archive"], key=lambda row: row["score"])
    assert found["selected_with"] == best["score"]
    assert len(result["structure"]) == 4
    assert list(result["structure"]["blocks_0/mlp/fc1/kernel"]) == list("ABCDE")


def test_the_found_adapter_is_read_back_and_scores_as_reported(whole, folder):
    place, result = whole
    rules = files.read_rules(place / "adapter")
    for path, forms in result["structure"].items():
        fixed = rules.get(re.escape(path))
        found = [getattr(fixed, name, "none") for name in "abcde"]
        assert found == list(forms.values())
    config = changed(small(folder), rules=tuple(rules.items()))
    one = Run(config, ProgramCache(make_mesh(data=1)))
    adapters = files.load(place / "adapter", one.peft, one.base)
    assert one.score(adapters, one.data.test) == result["scores"]


def test_resuming_returns_the_result(whole, folder):
    place, result = whole
    assert search(small(folder), place, resume=True) == result


@pytest.mark.parametrize("after", [10, 30 + 1, 30 + 2])
def test_interrupted_anywhere_and_resumed_to_the_same_archive(whole, folder, after):
    """The supernet takes some steps and the search three generations."""
    place, (other, result) = folder / f"stopped{after}", whole
    steps = Run(supernet(small(folder)), _Programs(), choose=True).steps
    after = after if after < 30 else steps - 1 + after - 30
    asked = 0

    def stop():
        nonlocal asked
        asked += 1
        return asked >= after

    with pytest.raises((Preempted, Stopped)):
        search(small(folder), place, stop=stop)
    assert not (place / "result.json").exists()
    again = search(small(folder), place, resume=True)
    assert state(place) == state(other)
    assert again["scores"] == result["scores"]


def test_stopped_while_its_base_is_trained(tmp_path):
    with pytest.raises(Preempted, match=r"stopped after step 1; .*\.training"):
        search(small(tmp_path), tmp_path / "search", stop=lambda: True)
    assert not (tmp_path / "search" / "supernet").exists()


class _Programs:
    """No programs: the run is asked for its length alone."""

    def of(self, config, outline, steps):
        class Nothing:
            peft, mesh = None, make_mesh(data=1)

            class step:
                shard_base = staticmethod(lambda base: base)

        return Nothing


def test_retraining_and_selection_on_test(folder):
    place = folder / "retrained"
    config = small(folder, selection="best_on_test")
    result = search(config, place, retrain=True, generations=0)
    trained = json.loads((place / "retrained" / "result.json").read_text())
    assert trained["scores"] == result["scores"]
    assert trained["selection"] == "last" and result["selection"] == "best_on_test"
    assert result["note"].endswith(ON_TEST)
    assert not (place / "adapter.json").exists()
    assert (place / "retrained" / "adapter.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.pop("search"),
        lambda x: x.update(archive=[]),
        lambda x: x["archive"][0].update(score=None),
        lambda x: x["archive"][0].update(genes=[1]),
        lambda x: x["history"][0].pop("best_so_far"),
        lambda x: x["search"].update(limit=3),
    ],
)
def test_a_damaged_state_is_one_line(whole, folder, change):
    """And nothing is trained, or written."""
    place = folder / "damaged"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole[0], place)
    (place / "result.json").unlink()
    found = state(whole[0])
    change(found)
    text = json.dumps(found)
    (place / "search.json").write_text(text)
    with pytest.raises((DamagedFile, UnfitSettings)) as caught:
        search(small(folder), place, resume=True, stop=lambda: True)
    assert len(str(caught.value).splitlines()) == 1
    assert (place / "search.json").read_text() == text


def test_what_is_refused(whole, folder, tmp_path):
    place, _ = whole
    config = small(folder)
    with pytest.raises(FileExistsError, match="holds a run; --resume"):
        search(config, place)
    with pytest.raises(FileExistsError, match="search.p: expected 0.5, found 0.2"):
        search(config, place, resume=True, p=0.5)
    (tmp_path / "archive.png").touch()
    with pytest.raises(FileExistsError, match=r"archive\.png: not a file of a run"):
        search(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["archive.png"]
    with pytest.raises(UnfitSettings, match="parents=0: expected at least 1"):
        search(config, folder / "a", parents=0)
    with pytest.raises(UnfitSettings, match=r"limit=10: the smallest of .*random"):
        run(config, folder / "b", 10, mesh=make_mesh(data=1), **FEW)
    assert not (folder / "b" / "supernet").exists()
    with pytest.raises(UnfitSettings, match="needs layers of GLoRA, found Full, LoRA"):
        search(get_config("method=lora"), folder / "c")
    for wrong in (pj.GLoRA((2, 1, 1)), pj.GLoRA(2, semantics="matrix")):
        with pytest.raises(UnfitSettings, match="expected one rank and element-wise"):
            search(changed(config, rules=((".*", wrong),)), folder / "d")


@pytest.mark.parametrize(
    ("beside", "told"),
    [
        (pj.AdaLoRA(4, 8.0, 2), "expected no method beside GLoRA whose frozen"),
        (pj.LoRA(4, alpha=8.0), ""),
    ],
)
def test_other_rules_in_the_file(folder, beside, told):
    glora = (r"blocks_\d+/mlp/fc1/kernel", pj.GLoRA(2))
    rules = (glora, (r"blocks_\d+/mlp/fc2/kernel", beside), ("head/.*", pj.Full()))
    config = changed(small(folder), rules=rules)
    if not told:
        assert [m for _, m in supernet(config).rules[1:]] == [beside, pj.Full()]
        return
    with pytest.raises(UnfitSettings, match=told):
        search(config, folder / "beside")


def test_without_a_validation_split_nothing_is_trained(folder, monkeypatch):
    data = digits.data

    def trained_on_all(config, choose):
        return replace(data(config, choose), validation=None)

    monkeypatch.setattr(digits, "data", trained_on_all)
    with pytest.raises(UnfitSettings, match="digits: has no validation split to sel"):
        search(small(folder), folder / "all")
    assert not (folder / "all" / "settings.json").exists()


def test_a_supernet_is_trained_by_the_search_alone(folder):
    config = supernet(small(folder))
    with pytest.raises(UnfitSettings, match="experiments.search trains a supernet"):
        finetune.run(config, folder / "alone")


def test_scanned_layers_are_refused_before_training(folder):
    rules = ((r"blocks/mlp/fc1/kernel", pj.GLoRA(2)), ("head/.*", pj.Full()))
    config = changed(small(folder), rules=rules)
    config.model.scan_layers = True
    with pytest.raises(UnfitSettings, match="blocks/mlp/fc1/kernel: scanned"):
        search(config, folder / "scanned")


def test_the_command(folder, capsys, whole):
    """A finished search is shown again."""
    place, result = whole
    overrides = {**SMALL, "paths.cache": folder / "cache"}
    argv = ["--config", "configs/quickstart.py:method=glora", f"--workdir={place}"]
    argv += [f"--config.{key}={value}" for key, value in overrides.items()]
    argv += [f"--limit={LIMIT}", "--resume"]
    argv += [f"--{key}={value}" for key, value in FEW.items()]
    main(argv)
    shown = capsys.readouterr().out
    assert f"accuracy             {result['scores']['accuracy']}" in shown
    with pytest.raises(SystemExit, match="--limit"):
        main(argv[:2])


def test_the_front():
    rows = [(5, 0.1), (3, 0.2), (9, 0.2), (9, 0.4), (3, 0.1), (4, 0.3)]
    archive = [Candidate((), n, s, 0, "random") for n, s in rows]
    found = [(c.parameters, c.score) for c in front(archive)]
    assert found == [(3, 0.2), (4, 0.3), (9, 0.4)]


def test_a_table_has_the_search_as_a_row(folder, tmp_path, capsys):
    """Beside fixed GLoRA, which is said to be something else."""
    few = {**FEW, "limit": LIMIT}
    configs = [
        small(folder, **{"train.epochs": 1, "measure": False}),
        small(folder, "method=glora_search", **{"train.epochs": 1}),
    ]
    configs[1].search.update(few)
    plan(configs[0], tmp_path, configs)
    table.fill(tmp_path, configs, cache=ProgramCache(make_mesh(data=1)))
    report.write(tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "| glora_search |" in text and "missing" not in text
    assert "glora: fixed structures of GLoRA, not the method of its paper" in text
    row = compare.compared(configs[1], tmp_path, 3, mesh=make_mesh(data=1))
    place = run_folder(tmp_path, configs[1])
    result = json.loads((place / "result.json").read_text())
    # The structure within the supernet is what it is as fixed methods.
    assert row["found"] == pytest.approx(result["scores"]["accuracy"], abs=0.02)
    assert row["parameters"] == result["search"]["parameters"]
    near = abs(np.array(row["random_parameters"]) / row["parameters"] - 1)
    assert len(row["random"]) == 3 and near.max() <= compare.NEAR
    table.fill(tmp_path, configs)
    assert "digits, glora_search, seed 0: finished before" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="which --force does not repeat"):
        table.clear(tmp_path, configs)


def rows_of(*pairs):
    facts = {"parameters": 9, "metric": "accuracy", "beaten": 1.0}
    return [
        {"seed": i, "found": x, "random": [y - 0.1, y + 0.1], **facts}
        for i, (x, y) in enumerate(pairs)
    ]


def test_the_comparison_is_paired_over_the_seeds():
    rows = rows_of((0.8, 0.7), (0.6, 0.55), (0.7, 0.68))
    found = compare.tested(rows)
    assert found["difference"] == pytest.approx(0.17 / 3)
    d = np.array([0.1, 0.05, 0.02])
    t = d.mean() / (d.std(ddof=1) / 3**0.5)
    assert found["t_test"]["t"] == pytest.approx(t)
    whole = {"seeds": rows, "random": 2, "config": {"task": "a"}, "beside": {}, **found}
    text = compare.shown(whole)
    assert "| 1 | 9 | 60.0 | 55.0 ± 14.1 | 100% |" in text and "+5.67 points" in text
    alone = compare.tested(rows[:1])
    assert alone["t_test"] is None and alone["wilcoxon"] is None
    assert "too few for a test" in compare.shown({**whole, **alone})


def test_too_few_structures_of_a_size_are_one_line(folder, monkeypatch):
    monkeypatch.setattr(compare, "ROUNDS", 1)
    config = supernet(small(folder))
    outline = digits.outline(config)
    rules, example = dict(config.rules), outline.example
    peft = pj.adapt(outline.model.apply, outline.abstract(), *example, rules=rules)
    with pytest.raises(UnfitSettings, match="seed 3: 0 of 1,000 random structures"):
        compare.equal_in_size(Space(peft), 7, 10**6, 5, 3)


def test_cut_off_while_a_generation_is_written(whole, folder, monkeypatch):
    """As by SIGKILL: nothing is caught, nothing tidied up."""

    class Cut(BaseException):
        pass

    place, (other, result), write = folder / "cut", whole, storage.write_text

    def cut(target, text):
        if target.name == "search.json" and '"generation": 1' in text:
            raise Cut
        write(target, text)

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(storage, "write_text", cut)
        search(small(folder), place)
    assert len(state(place)["history"]) == 1
    again = search(small(folder), place, resume=True)
    assert state(place) == state(other) and again["scores"] == result["scores"]
    for name in ("adapter.safetensors", "merged.safetensors"):
        assert (place / name).read_bytes() == (other / name).read_bytes()


def test_a_supernet_that_diverges_is_a_failed_row(folder, tmp_path):
    config = small(folder, **{"optim.lr": 1e30})
    found = search(config, tmp_path / "run")
    assert found["status"] == "failed" and "loss" in found["error"]
    assert search(config, tmp_path / "run", resume=True) == found
