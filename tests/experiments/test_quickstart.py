"""The main job, on a model small enough for a test."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import peftjax as pj
from configs import quickstart
from configs.quickstart import METHODS, get_config
from experiments import costs, finetune, sweep, table, tasks
from experiments.arguments import UnknownName
from experiments.documents import DamagedFile
from experiments.plan import folder as run_folder
from experiments.plan import plan
from experiments.preemption import Stopped
from experiments.programs import ProgramCache
from experiments.run import Run
from experiments.selection import Selection
from experiments.table.__main__ import _runs
from experiments.tasks import digits, from_scratch
from experiments.workdir import RunFolder
from peftjax.hub import files
from peftjax.hub.tensors import load_tree
from peftjax.parallel.mesh import make_mesh
from peftjax.training.errors import RunFileError
from peftjax.training.metrics import read_metrics

pytestmark = pytest.mark.slow

SMALL = {
    "model.depth": 1,
    "model.width": 16,
    "model.num_heads": 2,
    "model.mlp_dim": 32,
    "pretrain.epochs": 1,
    "train.epochs": 2,
    "train.eval_epochs": 1,
}


def small(cache, arg, **changes):
    config = get_config(arg)
    config.update_from_flattened_dict({**SMALL, "paths.cache": str(cache), **changes})
    return config


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        # eight fake devices are slow
        patch.setattr(from_scratch, "mesh_of", lambda config: make_mesh(data=1))
        yield


@pytest.fixture(scope="module")
def cache():
    """The programs of all runs here."""
    return ProgramCache(make_mesh(data=1))


@pytest.fixture(scope="module")
def job(tmp_path_factory, cache):
    """A finished table: its configurations and folder."""
    folder = tmp_path_factory.mktemp("job")
    arguments = ("method=lora", "method=lora,seed=1", "method=linear")
    configs = [small(folder / "cache", arg) for arg in arguments]
    configs[1].optim.lr = 2e-2  # another learning rate is another run, not a program
    plan(configs[0], folder, configs)
    table.fill(folder, configs, cache=cache)
    return configs, folder


def result(folder, config):
    return json.loads((run_folder(folder, config) / "result.json").read_text())


def test_every_run_leaves_its_files(job):
    configs, folder = job
    for config in configs:
        place, run = run_folder(folder, config), result(folder, config)
        assert (run["method"], run["seed"]) == (config.method, config.seed)
        assert run["status"] == "finished" and run["selected_step"] == 2 * 19
        assert {"jax", "flax", "python"} <= set(run["versions"])
        assert not (place / "checkpoints").exists()
        size = (place / "adapter.safetensors").stat().st_size
        assert size == run["adapter_bytes"]
        lines = [x for x in read_metrics(place / "metrics.jsonl") if "eval" in x]
        assert [line["step"] for line in lines] == [19, 38]
        assert set(lines[0]["eval"]) == {"validation_accuracy"}


def test_the_adapter_file_and_the_merged_weights_give_the_same_logits(job, cache):
    configs, folder = job
    run, place = Run(configs[0], cache), run_folder(folder, configs[0])
    adapters = files.load(place / "adapter", run.peft, run.base)
    merged = load_tree(place / "merged.safetensors", run.base)
    images = run.data.test["image"]
    adapted = jax.jit(run.peft.apply)(run.base, adapters, images)
    alone = jax.jit(run.outline.model.apply)(merged, images)
    difference = np.abs(adapted - alone).max()
    found = result(folder, configs[0])
    assert found["trainable"] == sum(leaf.size for leaf in jax.tree.leaves(adapters))
    assert found["trainable"] - found["trainable_without_head"] == 16 * 5 + 5
    assert 0 < found["merge_difference"] < 1e-4 and difference < 1e-4
    accuracy = (adapted.argmax(-1) == run.data.test["label"]).mean()
    assert found["scores"]["accuracy"] == pytest.approx(float(accuracy))


def test_what_cannot_merge_says_so_and_leaves_no_merged_weights(
    job, cache, tmp_path, capsys
):
    run = Run(small(job[1] / "cache", "method=hydralora"), cache)
    adapters = run.peft.init(jax.random.key(0), run.base)
    found = costs.merge(run, adapters, tmp_path / "merged.safetensors")
    assert found == {"merge_difference": None}
    assert "blocks_0/" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_finished_runs_and_the_base_are_not_repeated(job, monkeypatch):
    configs, folder = job

    def never(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(from_scratch._Training, "run", never)
    digits.base(configs[0], digits.outline(configs[0]))
    with pytest.raises(AssertionError, match="trained again"):
        other = small(folder / "cache", "method=lora", **{"pretrain.epochs": 2})
        digits.base(other, digits.outline(other))
    monkeypatch.setattr(finetune, "Run", never)
    table.fill(folder, configs)
    with pytest.raises(AssertionError, match="trained again"):
        table.fill(folder, [small(folder / "cache", "method=bitfit")])


def test_one_program_serves_seeds_and_learning_rates(job, cache):
    configs, _ = job
    first, second = Run(configs[0], cache), Run(configs[1], cache)
    assert first.programs is second.programs
    for run in (first, second):
        state, batches = run.state(), run.batches()
        for _ in range(3):
            state, _ = run.programs.step(state, run.sharded, next(batches))
        assert float(state.opt_state.hyperparams["peak"]) == np.float32(
            run.config.optim.lr
        )
    assert first.programs.step.function._cache_size() == 1


def test_a_changed_configuration_is_another_run(job):
    configs, folder = job
    changed = configs[0].copy_and_resolve_references()
    changed.optim.lr *= 2
    assert run_folder(folder, changed) != run_folder(folder, configs[0])
    changed = configs[0].copy_and_resolve_references()
    changed.table.seeds, changed.paths.cache = (0, 1, 2, 3), "elsewhere"
    assert run_folder(folder, changed) == run_folder(folder, configs[0])
    with changed.unlocked():
        changed.paths.model = "other/weights"
    assert run_folder(folder, changed) != run_folder(folder, configs[0])


@pytest.mark.parametrize(
    ("arg", "named"),
    [
        ("method=lorra", "lora"),
        ("methd=lora", "method"),
        ("method=lora,sed=1", "seed"),
        ("task=digit", "digits"),
    ],
)
def test_the_configs_argument_names_the_nearest(arg, named):
    with pytest.raises(UnknownName, match=f"did you mean {named}"):
        get_config(arg)
    with pytest.raises(UnknownName, match="expected a whole number"):
        get_config("seed=one")


def test_every_method_of_the_config_is_complete():
    config = get_config("method=hra,seed=2")
    assert (config.method, config.seed) == ("hra", 2)
    assert config.table.methods == tuple(METHODS)
    assert all(get_config(f"method={m}").optim.lr in config.grid for m in METHODS)


def test_all_are_the_methods_of_the_library():
    one = SimpleNamespace(config=quickstart.config)
    options = SimpleNamespace(methods=["all"], tasks=None, seeds=1, config=one)
    runs = _runs(quickstart.config(), options)
    assert [run.method for run in runs] == [*quickstart.EVERY]
    rules = [rule for _, rules in quickstart.EVERY.values() for rule in rules]
    absent = {*pj.methods.ALL} - {type(method) for _, method in rules}
    # of modules; of its search; a ViT has no table of tokens and no prefix of keys
    other = {pj.TrainableTokens, pj.PrefixTuning}
    assert absent == {pj.Composition, pj.GLoRASupernet, *other}
    given = {run.method for run in runs if "groups" in run.optim}
    assert given == {"lora_plus"}


def test_a_sweep_looks_at_the_held_out_examples_only(job, cache):
    config = small(job[1] / "cache", "method=linear,seed=100")
    run = Run(config, cache, choose=True)
    assert run.data.test is None and len(run.data.validation["label"]) > 0
    assert 0.0 <= sweep.score(config, cache) <= 1.0
    config.optim.lr = 1e38
    assert np.isnan(sweep.score(config, cache))


def test_a_finished_run_is_returned_and_not_done_again(job, monkeypatch):
    configs, folder = job
    monkeypatch.setattr(finetune, "Run", None)
    place = run_folder(folder, configs[0])
    with pytest.raises(FileExistsError, match="--resume"):
        finetune.run(configs[0], place)
    assert finetune.run(configs[0], place, resume=True) == result(folder, configs[0])
    changed = configs[0].copy_and_resolve_references()
    changed.optim.lr *= 2
    message = r"other settings(.|\n)*optim.lr: expected 0.02, found 0.01"
    with pytest.raises(FileExistsError, match=message):
        finetune.run(changed, place, resume=True)


def test_a_score_that_is_not_finite_is_never_the_best(
    job, cache, tmp_path, monkeypatch
):
    config = small(job[1] / "cache", "method=lora", measure=False)
    config.selection = "best_on_validation"
    scores = iter([float("nan"), 0.25, 0.5])
    monkeypatch.setattr(digits, "score", lambda *_: {"accuracy": next(scores)})
    assert finetune.run(config, tmp_path, cache=cache)["selected_step"] == 38


def test_a_sweep_that_was_cut_off_goes_on(tmp_path):
    file = tmp_path / "sweep.jsonl"
    sweep.add(file, {"key": "1", "score": 0.5})
    file.write_text(file.read_text() + '{"key": "2", "sc')
    assert set(sweep.read(file)) == {"1"}
    assert set(sweep.add(file, {"key": "3", "score": None})) == {"1", "3"}
    assert len(file.read_text().splitlines()) == 2
    for line in ('{"step": 1}', '{"key": "1", "score": "0.5"}', "[" * 10**5, "\0"):
        file.write_text(line + "\n")
        with pytest.raises(
            (DamagedFile, RunFileError), match=r"sweep\.jsonl, line 1: "
        ):
            sweep.read(file)


def test_a_sweep_that_is_told_to_stop_goes_on(job, cache, tmp_path):
    config, file = small(job[1] / "cache", "method=linear,seed=100"), tmp_path / "s"
    asked = iter([False, True])
    with pytest.raises(Stopped, match="the same command goes on"):
        sweep.scored(file, config, cache, lambda: next(asked))
    assert not file.exists()
    found = sweep.scored(file, config, cache, lambda: False)
    assert sweep.scored(file, config, None, None) == found  # of the file


def test_the_best_epoch_is_kept_and_reported(job, cache, tmp_path, monkeypatch):
    """The adapters are those of the best evaluation; what is done is told."""
    config = small(
        job[1] / "cache", "method=lora", **{"train.epochs": 4, "measure": False}
    )
    config.selection, config.trackers = "best_on_validation", ("tensorboard",)
    phases = []
    scores = iter([0.5, 0.75, 0.75, 0.25, 0.125])
    kept = []
    real = files.save
    monkeypatch.setattr(files, "save", lambda *a: kept.append(a[2]) or real(*a))
    monkeypatch.setattr(digits, "score", lambda *_: {"accuracy": next(scores)})
    found = finetune.run(
        config, tmp_path, cache=cache, tell=lambda phase, **_: phases.append(phase)
    )
    assert [*dict.fromkeys(phases)] == [
        *("preparing data and weights", "compiling", "step", "evaluating", "testing")
    ]
    assert list((tmp_path / "tensorboard").iterdir())
    assert "tensorboard" in RunFolder(tmp_path).files
    assert found["selected_step"] == 38 and found["scores"] == {"accuracy": 0.125}
    best = load_file(tmp_path / "best.safetensors")
    chosen = load_file(tmp_path / "adapter.safetensors")
    assert len(kept) == 3  # epochs 1 and 2, and the result
    for key, value in best.items():
        np.testing.assert_array_equal(value, chosen[key])


def test_a_best_epoch_that_cannot_be_told_is_not_guessed(job, cache, tmp_path):
    """Metrics that were damaged, or lost, are an error that names them."""
    config = small(job[1] / "cache", "method=lora", measure=False)
    config.selection = "best_on_validation"
    finetune.run(config, tmp_path, cache=cache)
    one = Selection(Run(config, cache), RunFolder(tmp_path))
    file = tmp_path / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert one.best(one.one.steps)[0] in (19, 38)
    evaluations = [line for line in lines if "eval" in line]
    for spoiled in (
        "".join(line for line in lines if line != evaluations[0]),
        "".join(lines).replace("validation_accuracy", "validation_acuracy"),
        "{\n" + "".join(lines),
        "",
    ):
        file.write_text(spoiled)
        with pytest.raises(DamagedFile, match=r"metrics\.jsonl.*best epoch cannot"):
            one.best(one.one.steps)


def test_the_selection_is_one_of_three(job, cache, tmp_path):
    config = job[0][0].copy_and_resolve_references()
    config.selection = "best_on_tset"
    with pytest.raises(UnknownName, match="best_on_test"):
        Selection(Run(config, cache), RunFolder(tmp_path)).watched()
    config.family = "digit"
    with pytest.raises(UnknownName, match="digits"):
        tasks.family(config)
