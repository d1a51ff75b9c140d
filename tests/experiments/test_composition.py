"""Modules of other sets composed for a task: start, refusals, weights, table."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import peftjax as pj
from configs import defaults
from configs.composition import dinov2_small
from experiments import finetune, report
from experiments.finetune import main
from experiments.optimizer import optimizer
from experiments.programs import ProgramCache
from experiments.report import weights
from experiments.report.rows import table
from experiments.report.runs import read
from experiments.run import Run
from experiments.upstream import UnfitModule
from peftjax import hub, presets
from peftjax.parallel.mesh import make_mesh
from tests.helpers.report_case import fill, result

pytestmark = pytest.mark.slow

MODEL = Path(__file__).resolve().parents[1] / "files" / "models" / "vit"
SETS = ("cats", "dogs", "owls")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three small sets, and a module of each of the first two."""
    folder, draw = tmp_path_factory.mktemp("composition"), np.random.default_rng(0)
    for count, name in enumerate(SETS):
        labels = np.arange(36) % (2 + count)  # another head for each
        images = draw.integers(0, 255, (36, 8, 8, 3), np.uint8)
        parts = {"train": slice(24), "val": slice(24, 28), "test": slice(28, 36)}
        arrays: Any = {f"{part}_images": images[rows] for part, rows in parts.items()}
        arrays |= {f"{part}_labels": labels[rows] for part, rows in parts.items()}
        np.savez(folder / f"{name}.npz", **arrays)
    cache = ProgramCache(make_mesh(data=1))
    for name in SETS[:2]:
        finetune.run(config(folder, name), folder / "modules" / name, cache=cache)
    return folder


def config(folder, task, method=None, upstream=(), rank=2, **changes):
    adapter = method or pj.LoRA(rank=rank, alpha=4.0)
    return defaults.own_images(
        task,
        "lora",
        0,
        str(MODEL),
        rules=tuple(presets.rules("vit", adapter).items()),
        train={"epochs": 1, "batch": 8},
        optim={"lr": 0.05, "warmup": 0, **changes},
        paths={
            "data": str(folder),
            "model": str(MODEL),
            "upstream": str(folder / "modules"),
        },
        **({"upstream": upstream} if upstream else {}),
    )


def learned(modules=2, **settings):
    return pj.Composition(modules, 2, "learned", **settings)


def start(config):
    one = Run(config, ProgramCache(make_mesh(data=1)))
    state = one.state()
    return one, one.peft.combine(state.trainable, state.frozen)


def test_a_run_starts_from_the_mean_of_its_modules(place):
    one, adapters = start(config(place, "owls", learned(), SETS[:2]))
    modules = [hub.read_module(place / "modules" / x / "adapter") for x in SETS[:2]]
    for path, p in adapters.items():
        if path.startswith("head"):
            assert set(p) == {"value"} and p["value"].shape[-1] == 4
            continue
        product = np.einsum("nir,nro,n->io", p["a"], p["b"], p["scale"]) / 2
        products = [2 * m[path]["a"] @ m[path]["b"] for _, m in modules]
        np.testing.assert_allclose(product, np.mean(products, axis=0), atol=1e-6)
        assert np.abs(product).max() > 0
    assert set(one.modules) == set(SETS[:2])


def test_the_result_says_what_was_composed_and_how(place, tmp_path):
    uniform = config(place, "owls", pj.Composition(2, 2, "uniform"), SETS[:2])
    given = config(place, "owls", learned(), SETS[:2])
    given.optim.groups = ((r"head/.*", 0.1),)
    cache = ProgramCache(make_mesh(data=1))
    found = finetune.run(given, tmp_path / "learned", cache=cache)
    one = Run(given, cache)
    adapters = hub.load(tmp_path / "learned" / "adapter", one.peft)
    sites = [x.path for x in one.peft.sites if isinstance(x.method, pj.Composition)]
    assert set(found["mixture"]) == set(sites) and sites
    for path, mixed in found["mixture"].items():
        expected = np.exp(adapters[path]["logits"])
        np.testing.assert_allclose(mixed, expected / expected.sum(), rtol=1e-5)
        assert max(mixed) > 0.5
    facts = json.loads((place / "modules" / "cats" / "adapter.json").read_text())
    assert found["upstream"]["cats"] == facts["sha256"]
    plain = finetune.run(uniform, tmp_path / "uniform", cache=cache)
    assert plain["mixture"] == {} and set(plain["upstream"]) == set(SETS[:2])


def test_what_does_not_fit_is_told(place, tmp_path):
    def refused(found, told, error: Any = UnfitModule):
        with pytest.raises(error, match=told):
            start(found)

    refused(
        config(place, "dogs", learned(), SETS[:2]),
        r"modules/dogs has seen its train split \(as dogs.npz, train\)",
    )
    refused(
        few(place, "dogs", learned(1), ("dogs",)),
        r"modules/dogs has seen its test split",
    )
    refused(
        config(place, "owls", learned(3), SETS),
        "composes the module of owls, .*modules/owls holds no run: give --config",
        FileNotFoundError,
    )
    refused(
        config(place, "owls", pj.Composition(2, 3, "learned"), SETS[:2]),
        r"expected modules of .*\(2, \d+, 3\).*, found .*\(2, \d+, 2\)",
    )
    refused(
        config(place, "owls", pj.Composition(3, 2, "learned"), SETS[:2]),
        "expected modules of",
    )


def few(*args):
    found = config(*args)
    found.data.shots = 4
    return found


def test_modules_of_another_base_are_refused(place, tmp_path):
    model, variables = pj.models.load(MODEL)
    kernel = variables["params"]["patch_embed"]["kernel"]
    variables["params"]["patch_embed"]["kernel"] = kernel + 1
    pj.models.save(tmp_path / "other", model, variables)
    found = config(place, "owls", learned(), SETS[:2])
    found.paths.model = str(tmp_path / "other")
    with pytest.raises(UnfitModule, match="cats/adapter: of another base: .*patch_emb"):
        start(found)


def test_a_missing_module_is_one_line(place, tmp_path, monkeypatch):
    file = tmp_path / "own.py"
    file.write_text(
        "from configs import defaults\n"
        "from tests.experiments.test_composition import config, learned\n"
        "from pathlib import Path\n"
        f"def of(task='owls', method='lora', seed=0):\n"
        f"    return config(Path({str(place)!r}), task, learned(1), ('owls',))\n"
        "get_config = defaults.door(of)\n"
    )
    with pytest.raises(SystemExit, match="holds no run") as caught:
        main(["--config", str(file), "--workdir", str(tmp_path / "run")])
    assert len(str(caught.value.code).splitlines()) == 1


def test_a_task_is_composed_of_the_other_sets():
    found = dinov2_small.get_config("task=mnist-5,method=learned")
    assert found.upstream == ("eurosat5", "cifar10", "caltech101")
    assert found.data.shots == 5 and dict(found.optim.groups) == {r"head/.*": 0.1}
    whole = dinov2_small.get_config("task=mnist,method=lora")
    assert whole.data.shots == 0 and "upstream" not in whole
    assert set(found.table.tasks) < set(found.table.all_tasks)


def test_the_head_has_its_own_rate():
    settings = {"schedule": "constant", "lr": 0.1, "warmup": 0, "weight_decay": 0.0}
    groups = ((r"head/.*", 10.0),)
    descent = optimizer(ConfigDict({**settings, "groups": groups}), 2, 1)
    one = jnp.ones(())
    params = {"fc/kernel": {"logits": one}, "head/kernel": {"value": one}}
    updates, _ = descent.update(params, descent.init(params), params)
    rates = [-float(p) for own in updates.values() for p in own.values()]
    np.testing.assert_allclose(rates, [0.1, 1.0], rtol=1e-5)


def test_the_heat_map_is_the_mean_over_seeds(tmp_path, monkeypatch):
    mixtures = [{"a/kernel": [0.2, 0.8]}, {"a/kernel": [0.4, 0.6]}]
    runs = [
        result("pets", "learned", seed, 0.5, mixture=x, upstream={"m": "0", "n": "1"})
        for seed, x in enumerate(mixtures)
    ]
    runs.append(result("pets", "uniform", 0, 0.5, upstream={"m": "0", "n": "1"}))
    plan, found = read(fill(tmp_path, runs))
    (panel,) = weights.panels(table("a_table", found, plan["table"]))
    title, layers, modules, mean = panel
    assert (title, layers, modules) == ("pets, learned", ["a/kernel"], ["m", "n"])
    np.testing.assert_allclose(mean, [[0.3, 0.7]])
    axes = weights.draw([panel]).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[-0.2, 0.2]])
    monkeypatch.setattr(report.plot, "png", lambda *_: b"no picture")
    report.write(tmp_path)
    assert (tmp_path / "weights.png").read_bytes().startswith(b"\x89PNG")
