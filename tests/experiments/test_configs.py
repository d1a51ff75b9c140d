"""The papers' configurations: recipes, options, schedules, refusals."""

import csv
import re
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import peftjax as pj
from experiments import tasks
from experiments.arguments import UnknownName
from experiments.hparams import line
from experiments.optimizer import optimizer, schedule
from experiments.programs import starter
from experiments.published import FOLDER, Numbers
from experiments.run import Run
from peftjax.core.paths import flatten
from peftjax.data import vtab
from peftjax.hub import files
from peftjax.hub.tensors import AdapterFileError
from peftjax.models.files import CheckpointError
from peftjax.parallel.mesh import make_mesh
from tests.helpers.config_case import DEBERTA, ROBERTA, VIT, get, tiny

DATA = Path(__file__).parents[1] / "files"
EPS = float(jnp.finfo(jnp.float32).eps)


def recipes(name):
    with (FOLDER / f"hparams_{name}.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def first_method(config):
    return config.rules[0][1]


@pytest.mark.parametrize("row", recipes("hydra_glue"), ids=lambda row: row["task"])
def test_hydra_on_glue_is_the_published_recipe(row):
    config = get(ROBERTA, f"task={row['task']},method=hydra")
    assert config.optim.lr == float(row["learning_rate"])
    assert config.optim.weight_decay == float(row["weight_decay"])
    assert config.optim.warmup == float(row["warmup_ratio"])
    assert config.train.epochs == int(row["epochs"])
    assert config.train.batch == int(row["global_batch"])
    assert config.data.max_length == config.data.buckets[-1] == 512
    method = first_method(config)
    assert (method.rank, method.seq_rank) == (4, 8) and not method.branch_bias
    assert config.start_from == ("mnli" if "mnli" in row["start_from"] else "")


@pytest.mark.parametrize("name", [ROBERTA, DEBERTA, "glue.minilm"])
def test_the_metric_of_each_glue_task_is_one_of_its_scores(name):
    for task in get(name).table.all_tasks:
        outline = tasks.glue.outline(tiny(name, f"task={task}"))
        logits = np.eye(3)[:, : 1 if task == "stsb" else 2]
        assert outline.metric in outline.score(np.array([0, 1, 1]), logits)
    config = tiny(name, "task=cola")
    config.metric = "accuracyy"
    with pytest.raises(UnknownName, match="did you mean accuracy"):
        tasks.glue.outline(config)


def test_paired_tasks_of_hra_are_compared_in_the_chosen_metric():
    for metric, compared in (("accuracy", "lora"), ("mean", "hra0")):
        config = get(DEBERTA, f"task=mrpc,metric={metric}")
        numbers = Numbers.of(config.table)
        assert config.metric == metric
        assert numbers.score(compared, "mrpc")
        assert not numbers.score("hra0" if compared == "lora" else "lora", "mrpc")
        assert get(DEBERTA, f"task=rte,metric={metric}").metric == "accuracy"


@pytest.mark.parametrize(
    "row", recipes("hydra_vtab1k"), ids=lambda row: str(row["task"])
)
def test_hydra_on_vtab_is_the_published_recipe(row):
    config = get(VIT, f"task={row['task']},method=hydra")
    method = first_method(config)
    assert config.model.num_classes == int(row["classes"])
    assert config.optim.lr == float(row["lr"])
    assert config.optim.weight_decay == float(row["weight_decay"])
    assert config.train.batch == int(row["batch_size"])
    assert method.scale == float(row["scale"]) and method.rank == int(row["rank"])
    assert method.dropout == float(row["dropout"]) and method.branch_bias
    assert config.model.drop_path == 0.1 and config.train.epochs == 100


HRA = {
    "hra0": ("paper", "lambda=0"),
    "hra_penalty": ("paper", "lambda=1e-6"),
    "new": ("repository_new", "after"),
    "old": ("repository_old", "before"),
}


@pytest.mark.parametrize(
    ("method", "origin", "words"), [(k, *v) for k, v in HRA.items()]
)
def test_hra_is_the_published_recipe_of_each_origin(method, origin, words):
    module = import_module(f"configs.{DEBERTA}")
    name = method if method in module.METHODS else "hra0"
    rows = [x for x in recipes("hra_glue") if words in x["config"] + x["origin"]]
    assert len(rows) == 8
    for row in rows:
        (task,) = [ours for ours, paper in module.NAMES.items() if paper == row["task"]]
        config = get(DEBERTA, f"task={task},method={name},origin={origin}")
        assert config.optim.lr == float(row["learning_rate"])
        assert config.optim.warmup == int(row["warmup_steps"])
        assert config.train.epochs == int(row["epochs"])
        assert config.train.batch == int(row["batch_size"])
        assert config.data.max_length == int(row["max_seq_len"])
        assert config.data.buckets[-1] == config.data.max_length
        assert config.model.settings.cls_dropout == 0.1
        assert (config.optim.eps, config.optim.weight_decay) == (1e-6, 0.01)


def test_ssf_is_the_published_recipe():
    settings = {"lr": "optim", "weight_decay": "optim", "drop_path": "model"}
    for task in vtab.TASKS:
        config = get(VIT, f"task={task},method=ssf")
        for name, part in settings.items():
            where = {"method": "SSF", "task": task, "parameter": name}
            published = float(line("vtab1k_baselines", **where)["value"])
            assert config[part][name] == published
        assert (config.optim.start, config.optim.floor) == (1e-7, 1e-8)
        assert config.train.batch == 64 and config.data.normalisation == "unit"


def test_a_recipe_that_is_not_there_or_ambiguous_is_an_error():
    with pytest.raises(LookupError, match=r"hparams_hydra_glue.csv.*found 0"):
        line("hydra_glue", task="wnli")
    with pytest.raises(LookupError, match="found 8"):
        line("hydra_glue", max_seq_length="512")


@pytest.mark.parametrize(
    ("name", "arg", "changes"),
    [
        (VIT, "placement=figure", lambda x: "proj" not in x.rules[0][0]),
        (VIT, "period=run", lambda x: x.optim.period == 100),
        (VIT, "selection=best_on_test", lambda x: x.selection == "best_on_test"),
        (ROBERTA, "task=rte,start=fresh", lambda x: x.start_from == ""),
        (DEBERTA, "head=trained", lambda x: len(x.rules) == 3),
        (DEBERTA, "start=independent", lambda x: x.rules[0][1].start == "independent"),
        (
            DEBERTA,
            "method=hra_penalty,penalty=1e-5",
            lambda x: x.rules[0][1].penalty_weight == 1e-5,
        ),
    ],
)
def test_an_option_changes_what_it_names(name, arg, changes):
    chosen = [part for part in arg.split(",") if part.startswith(("task", "method"))]
    assert changes(get(name, arg)) and not changes(get(name, ",".join(chosen)))


@pytest.mark.parametrize(
    ("name", "arg", "named"),
    [
        (VIT, "task=cifer", "unknown task 'cifer': did you mean cifar"),
        (VIT, "method=hydar", "did you mean hydra"),
        (VIT, "placment=figure", "unknown key 'placment': did you mean placement"),
        (VIT, "selection=best", "did you mean"),
        (ROBERTA, "task=mrcp", "did you mean mrpc"),
        (ROBERTA, "start=frsh", "did you mean fresh"),
        (DEBERTA, "method=hra_penality", "did you mean hra_penalty"),
        (DEBERTA, "origin=repository", "did you mean repository_"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, arg, named):
    with pytest.raises(UnknownName, match=named):
        get(name, arg)


def applied(config, epochs):
    """Return the rate of each epoch's update: without gradients, AdamW decays only."""
    descent = optimizer(config.optim, epochs, 1)
    params = {"kernel": {"a": jnp.ones(1)}}
    zeros = jax.tree.map(jnp.zeros_like, params)

    def update(state, _):
        updates, state = descent.update(zeros, state, params)
        return state, -updates["kernel"]["a"][0] / config.optim.weight_decay

    return jax.jit(lambda state: jax.lax.scan(update, state, length=epochs)[1])(
        descent.init(params)
    )


@pytest.mark.parametrize("method", ["hydra", "glora"])
def test_the_rates_of_vtab_are_those_of_the_released_code(method):
    file = {"hydra": "hydra_vtab", "glora": "glora"}[method]
    with np.load(DATA / f"{file}_lr_schedule.npz", allow_pickle=False) as vectors:
        seen = set()
        for task in vtab.TASKS:
            config = get(VIT, f"task={task},method={method}")
            name = f"lr_{config.optim.lr:g}"
            expected = vectors[name]
            assert len(expected) == config.train.epochs
            rates = schedule(config.optim, 10**6, 15)(15 * np.arange(len(expected)) + 7)
            np.testing.assert_allclose(rates, expected, rtol=16 * EPS)
            if name not in seen:
                found = applied(config, len(expected))
                np.testing.assert_allclose(found, expected, rtol=16 * EPS)
            seen.add(name)
        assert seen == set(vectors.files)


def test_average_sizes_of_glora_subnets_are_those_of_the_notes():
    layers = 12 * [(768, 2304), (768, 768), (768, 3072), (3072, 768)]
    module = import_module(f"configs.{VIT}")
    for rank in (2, 4, 8):
        average = sum(
            2 * (rank * (d_in + out) + out + 1) / 4
            + (rank * (d_in + 1) + d_in) / 3
            + 2 * (out + 1) / 3
            for d_in, out in layers
        )
        assert f"average {average / 1e6:.2f} M" in module.NOTES[f"glora_r{rank}"]
        drawn = {type(m) for _, m in get(VIT, f"method=glora_r{rank}").rules}
        assert drawn == {pj.GLoRA, pj.Full}


def base(config, folder, **fields):
    """Save the configuration's model with other fields; return what the run reads."""
    family, other = tasks.family(config), config.copy_and_resolve_references()
    (other.model.settings if "settings" in config.model else other.model).update(fields)
    outline = family.outline(other)
    example = [jnp.ones(x.shape, x.dtype) for x in outline.example]
    variables = jax.jit(outline.model.init)(jax.random.key(0), *example)
    pj.models.save(folder, outline.model, variables)
    config.paths.model = str(folder)
    return variables, family.base(config, family.outline(config))


def same_shapes(a, b):
    return jax.tree.map(jnp.shape, a) == jax.tree.map(jnp.shape, b)


def test_weights_of_another_text_model_are_refused(tmp_path):
    config = tiny(ROBERTA, "task=mrpc")
    assert same_shapes(*base(config, tmp_path / "same"))
    with pytest.raises(
        CheckpointError, match=r"glue_roberta_base(.|\n)*hidden_size: expected 24, fo"
    ):
        base(config, tmp_path / "other", hidden_size=32)


def test_weights_of_another_image_model_are_refused(tmp_path):
    config = get(VIT, "task=kitti")
    config.model.update(image_size=32, width=24, depth=1, num_heads=2, mlp_dim=40)
    assert same_shapes(*base(config, tmp_path / "same"))
    with pytest.raises(CheckpointError, match=r"vtab_vit_b16(.|\n)*width = 16"):
        base(config, tmp_path / "other", width=16)


def started(config) -> Any:
    """Return a `Run` as far as its state, without the data."""
    outline = tasks.family(config).outline(config)
    example = outline.example
    tokens = [jnp.ones(x.shape, x.dtype) for x in example]
    base = jax.jit(outline.model.init)(jax.random.key(config.seed), *tokens)
    peft = pj.adapt(outline.model.apply, base, *example, rules=dict(config.rules))
    one = Run.__new__(Run)
    vars(one).update(
        config=config,
        base=base,
        peft=peft,
        sharded=base,
        steps=10,
        steps_per_epoch=5,
        programs=SimpleNamespace(
            start=starter(peft, optimizer(config.optim, 2, 1), make_mesh())
        ),
    )
    return one


def test_a_run_starts_from_the_adapter_of_another_task(tmp_path):
    mnli = started(tiny(ROBERTA, "task=mnli,method=hydra,seed=1"))
    other = jax.tree.map(lambda x: x + 0.5, mnli.peft.init(jax.random.key(7)))
    files.save(tmp_path / "adapter", mnli.peft, other, mnli.base)

    one = started(tiny(ROBERTA, "task=mrpc,method=hydra"))
    with pytest.raises(FileNotFoundError, match=r"--config.paths.start.*start=fresh"):
        Run.state(one)
    one.config.paths.start = str(tmp_path / "adapter")
    state = Run.state(one)
    found = one.peft.combine(state.trainable, state.frozen)
    heads = {path for path in found if path.startswith("classifier/")}
    assert heads and heads < set(found)
    own = one.peft.init(jax.random.key(3), one.base)
    for path, arrays in found.items():
        expected = own if path in heads else other
        jax.tree.map(np.testing.assert_array_equal, arrays, expected[path])
    assert one.config.task == "mrpc"

    one.config = ConfigDict(one.config)
    one.config.rules = (*one.config.rules[:-1], (r"classifier/out_proj/.*", pj.Full()))
    with pytest.raises(AdapterFileError):
        Run.state(one)


@pytest.mark.parametrize(
    ("name", "method", "resting"),
    [
        (ROBERTA, "full", r".*(bias|norm/scale)"),
        (DEBERTA, "full", r".*(bias|norm/scale)"),
        (ROBERTA, "bitfit", r".*bias"),
        (ROBERTA, "hydra", r"classifier/.*bias|.*/kernel/.*_bias"),
        (DEBERTA, "hra0", ""),  # it trains no bias
    ],
)
def test_biases_and_layer_norm_do_not_decay_on_glue(name, method, resting):
    """With gradients of 0, all other leaves shrink: e^-18 in a run on MNLI."""
    config = tiny(name, f"task=mrpc,method={method}")
    outline = tasks.family(config).outline(config)
    variables, rules = outline.abstract(), dict(config.rules)
    peft = pj.adapt(outline.model.apply, variables, *outline.example, rules=rules)
    shapes = jax.eval_shape(peft.init, jax.random.key(0), variables)
    ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), peft.partition(shapes)[0])
    zeros = jax.tree.map(np.zeros_like, ones)
    descent = optimizer(config.optim, 10, 5)

    @jax.jit
    def moved(params):
        state = descent.init(params)
        _, state = descent.update(zeros, state, params)  # the rate of step 0 is 0
        return descent.update(zeros, state, params)[0]

    paths, leaves, _ = flatten(moved(ones))
    assert len(paths) > 2
    for path, update in zip(paths, leaves):
        inside = path.lstrip("/").removesuffix("/value")
        rests = bool(re.fullmatch(resting, inside))
        assert np.all(update == 0) == rests, path
        assert rests or np.all(update < 0), path
