"""One program for each thing that a run does, and none for a further run."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import finetune
from experiments.programs import ProgramCache
from experiments.tasks import digits, from_scratch
from experiments.tasks.task import Data, take
from peftjax.parallel.mesh import make_mesh
from tests.experiments.test_quickstart import small
from tests.helpers.compilations import compilations

pytestmark = pytest.mark.slow

FIRST = 15  # pretraining included


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    """Return a function that does a run and returns the programs it compiled."""
    folder, cache = tmp_path_factory.mktemp("runs"), ProgramCache(make_mesh(data=1))

    def do(name, arg, **changes):
        config = small(folder / "cache", arg, **changes)
        with compilations() as found:
            finetune.run(config, folder / name, cache=cache)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(from_scratch, "mesh_of", lambda config: make_mesh(data=1))
        first = do("first", "method=lora")
        yield first, do


def test_a_first_run_compiles_one_program_for_each_thing_done(runner):
    first, _ = runner
    assert 0 < len(first) <= FIRST, first


def test_a_further_seed_or_task_compiles_nothing(runner, monkeypatch):
    _, do = runner
    assert do("seed", "method=lora,seed=1", **{"optim.lr": 0.1}) == []

    def other(config, choose):
        train, validation, test = digits._splits(config.data)
        return Data(take(train, np.arange(200)), validation, test)

    monkeypatch.setattr(digits, "data", other)
    assert do("task", "method=lora") == []

    def loose(labels, outputs):
        return {"accuracy": float((jnp.argmax(outputs, -1) == labels).mean())}

    monkeypatch.setattr(digits, "score", loose)
    assert len(do("planted", "method=lora,seed=2")) > 0
