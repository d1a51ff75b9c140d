"""Modules of language tasks composed for another one: uniform, learned, LoraHub's."""

import json

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs peftjax[text]")

import peftjax as pj
from configs.llm import composition_bbh
from experiments import finetune
from experiments.programs import ProgramCache
from experiments.run import Run
from experiments.tasks import llm_data
from experiments.tasks.task import UnreadableData
from experiments.upstream import UnfitModule
from peftjax.convert import combine
from peftjax.hub import files, read_module
from peftjax.methods.composition import sites
from peftjax.models import save
from peftjax.parallel.mesh import make_mesh
from tests.helpers.llm_case import FOLDER, SETTINGS, tiny_llama

pytestmark = pytest.mark.slow

GROUPS = {"sums": ("add",), "products": ("times", "twice")}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model, four tasks of 12 examples, and a module of each group."""
    folder = tmp_path_factory.mktemp("lorahub")
    save(folder / "model", *tiny_llama())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = json.dumps({"eos_token": "</s>"})
        if name == "tokenizer.json":
            text = (FOLDER / name).read_text()
        (folder / "model" / name).write_text(text)
    (folder / "bbh").mkdir()
    draw = np.random.default_rng(0).integers(0, 5, (12, 2)).tolist()
    for task, answer in {
        "add": lambda a, b: a + b,
        "times": lambda a, b: a * b,
        "twice": lambda a, b: 2 * a,
        "less": lambda a, b: int(a < b),
    }.items():
        rows = [
            {"input": f"{task} {a} {b}", "target": f"{answer(a, b)}"} for a, b in draw
        ]
        (folder / "bbh" / f"{task}.json").write_text(json.dumps({"examples": rows}))
    for group in GROUPS:
        finetune.run(
            config(folder, group, "lora"), folder / "runs" / group, cache=CACHE
        )
    return folder


CACHE = ProgramCache(make_mesh(data=1))


def config(place, task, method, **changes):
    few = task not in GROUPS
    found = composition_bbh.config("navigate" if few else "arithmetic", method, 0)
    found.task = task
    rules = composition_bbh.rules(
        {
            "lora": pj.LoRA(rank=2, alpha=4.0),
            "uniform": pj.Composition(2, 2, "uniform"),
            "learned": pj.Composition(2, 2, "learned"),
            "base": pj.Composition(2, 2, (0.0, 0.0)),
            "lorahub": pj.Composition(1, 2, (1.0,)),
        }[method]
    )
    found.rules = rules
    found.model.settings = dict(SETTINGS)
    found.paths.update({"model": str(place / "model"), "data": str(place)})
    found.paths.update({"package": "", "cache": str(place / "cache")})
    if method != "lora":
        found.upstream = tuple(GROUPS)
        found.paths.upstream = str(place / "runs")
    own = GROUPS.get(task, (task,))
    found.data.update({"eos": "</s>", "max_length": 64, "buckets": (32,), "tasks": own})
    found.train.update({"epochs": 2, "batch": 5 if few else 4, "eval_batch": 4})
    found.exam.update({"examples": 4, "steps": 4, "batch": 4})
    for key, value in changes.items():
        found.data[key] = value
    return found


def test_five_examples_are_taught_and_the_others_examined(place):
    settings = config(place, "less", "lora").data
    taught, left = llm_data.bbh_parts(settings, str(place))
    assert len(taught) == 5 and len(left["less"]) == 7
    other = config(place, "less", "lora", split_seed=1).data
    assert llm_data.bbh_parts(other, str(place))[0] != taught


def test_too_few_examples_and_none_to_choose_on_are_refused(place):
    with pytest.raises(UnreadableData, match=r"less\.json: expected more .* found 12"):
        Run(config(place, "less", "lora", shots=12), CACHE)
    with pytest.raises(UnreadableData, match=r"data\.held_out=0\.0 of 5 examples"):
        Run(config(place, "less", "lora"), CACHE, choose=True)


def test_lorahubs_weights_make_the_module_that_is_kept(place):
    one = config(place, "less", "lorahub")
    result = finetune.run(one, place / "lorahub", cache=CACHE)
    found = result["weighed"]
    weights = [found["weights"][name] for name in GROUPS]
    assert found["evaluated"] == 40 and all(abs(w) <= 1.5 for w in weights)
    assert result["trainable"] == 0 and set(result["upstream"]) == set(GROUPS)
    modules = [read_module(place / "runs" / name / "adapter") for name in GROUPS]
    run = Run(one, CACHE)
    kept = files.load(place / "lorahub" / "adapter", run.peft, run.base)
    for path, members in sites(modules).items():
        _, mixed = combine.lorahub(members, weights)
        for name in ("a", "b"):
            got = np.asarray(kept[path][name]).squeeze(-3)
            np.testing.assert_allclose(got, mixed[name], rtol=1e-5, atol=1e-7)
    # It is what the search says it is.
    loss = run.score(kept, run.data.train)["loss"]
    penalty = 0.05 * np.abs(weights).mean()
    assert loss / 5 + penalty == pytest.approx(found["objective"], rel=1e-4)
    assert {"average", "less"} <= set(result["scores"])


def test_no_module_at_all_is_the_model_alone(place):
    one = Run(config(place, "less", "base"), CACHE)
    adapters = one.start()
    scores = one.score(adapters, one.data.test)
    batch = np.asarray([[1, 5, 7, 9, 11]])
    logits = one.outline.model.apply(one.base, batch)
    np.testing.assert_array_equal(one.peft.apply(one.base, adapters, batch), logits)
    assert np.isfinite(scores["loss"])


@pytest.mark.parametrize("method", ["uniform", "learned"])
def test_compositions_run(place, method):
    result = finetune.run(config(place, "less", method), place / method, cache=CACHE)
    layers = 2 * 2  # query and value of two layers
    assert result["trainable"] == (2 * layers if method == "learned" else 0)
    assert result["status"] == "finished" and 0 <= result["scores"]["less"] <= 1


def test_a_module_that_has_seen_the_examples_is_refused(place):
    seen = place / "seen" / "sums"
    finetune.run(config(place, "less", "lora"), seen, cache=CACHE)
    one = config(place, "less", "lorahub")
    one.upstream, one.paths.upstream = ("sums",), str(place / "seen")
    with pytest.raises(UnfitModule, match="has seen its train split"):
        Run(one, CACHE).state()
