"""The mesh that a configuration asks for, and batches that it divides."""

import jax
import pytest

from configs.defaults import SPLIT, run
from configs.quickstart import get_config
from experiments.checks import UnfitSettings, check
from experiments.meshes import check_batch, mesh_of, padded
from experiments.records import identity


def config(**parallel):
    found = get_config("")
    found.parallel.update(parallel)
    return found


@pytest.mark.parametrize(
    ("parallel", "shape"),
    [
        ({}, (8, 1)),
        ({"fsdp": 4}, (2, 4)),
        (SPLIT["llm"], (1, 8)),
        ({"data": 2, "fsdp": 0}, (2, 4)),
        ({"data": 0, "fsdp": 0}, (1, 8)),
        ({"data": 2}, (2, 1)),
    ],
)
def test_zero_takes_as_many_devices_as_there_are(parallel, shape):
    mesh = mesh_of(config(**parallel))
    assert (mesh.shape["data"], mesh.shape["fsdp"]) == shape


def test_a_language_model_is_split_and_an_encoder_is_not():
    """Over as many devices as there are, unless the configuration says otherwise."""
    given = {"tasks": ("a",), "methods": ("b",), "name": "c"}
    found = [
        mesh_of(run(**given, family=family, parallel=parallel)).shape
        for family in ("llm", "glue")
        for parallel in (None, {"data": 2, "fsdp": 2})
    ]
    assert [(x["data"], x["fsdp"]) for x in found] == [(1, 8), (2, 2), (8, 1), (2, 2)]


def test_a_run_under_a_default_device_takes_that_alone():
    with jax.default_device(jax.devices()[3]):
        assert [*mesh_of(config(fsdp=4)).devices.flat] == [jax.devices()[3]]


@pytest.mark.parametrize("parallel", [{"data": 9}, {"fsdp": 3}, {"data": 5, "fsdp": 2}])
def test_a_mesh_that_does_not_fit_is_one_line(parallel):
    with pytest.raises(UnfitSettings, match="there are 8 devices; 0 takes") as caught:
        mesh_of(config(**parallel))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("batch", "accumulate", "told"),
    [
        (30, 1, "8 devices take a multiple of 8: give 24 or 32"),
        (6, 1, "take a multiple of 8: give 8,"),
        (40, 2, r"8 devices x parallel.accumulate=2 take a multiple of 16: give 32 or"),
    ],
)
def test_a_batch_that_the_mesh_does_not_divide(batch, accumulate, told):
    with pytest.raises(UnfitSettings, match=told):
        check_batch("train.batch", batch, mesh_of(config()), accumulate)
    assert check_batch("train.batch", 48, mesh_of(config()), accumulate) == 48


def test_evaluation_is_padded():
    mesh = mesh_of(config())
    assert [padded(size, mesh) for size in (1, 8, 30)] == [8, 8, 32]


def test_another_mesh_continues_the_same_run():
    found = config()
    before = identity(found)
    found.parallel.update({"data": 1, "fsdp": 8, "accumulate": 4})
    assert identity(found) == before


@pytest.mark.parametrize(
    "parallel", [{"data": -1}, {"fsdp": 1.5}, {"accumulate": 0}, {"accumulate": True}]
)
def test_counts_that_are_none(parallel):
    found = config()
    with found.ignore_type():
        found.parallel.update(parallel)
    with pytest.raises(UnfitSettings, match="parallel.*expected a whole number"):
        check(found, "here")
