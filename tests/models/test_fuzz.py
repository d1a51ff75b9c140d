"""Damaged files: a clean error or a model, never anything else."""

import shutil

import numpy as np
import pytest

from peftjax.models import CheckpointError, load, save
from tests.helpers.model_cases import MODELS

pytestmark = pytest.mark.slow

TRIALS = 100


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Return a folder with shards, an index and a configuration."""
    folder = tmp_path_factory.mktemp("originals")
    for name in ("bert", "llama3", "vit"):
        model, variables = load(MODELS / name)
        save(folder / name, model, variables, shard_bytes=20_000)
    shutil.copy(MODELS / "vit" / "google.npz", folder)
    return folder


def flipped(content, rng, head):
    """Return the bytes with a few replaced, most of them near the start."""
    damaged = bytearray(content)
    reach = min(len(damaged), head) if rng.random() < 0.8 else len(damaged)
    for place in rng.integers(0, reach, rng.integers(1, 4)):
        damaged[place] ^= 1 << rng.integers(0, 8)
    if rng.random() < 0.1:
        del damaged[rng.integers(0, len(damaged)) :]
    return bytes(damaged)


@pytest.mark.parametrize(
    ("model", "pattern", "head"),
    [
        ("bert", "config.json", 10_000),
        ("llama3", "config.json", 10_000),
        ("vit", "config.json", 10_000),
        ("bert", "model.safetensors.index.json", 10_000),
        ("llama3", "model-00001-of-*.safetensors", 900),
        ("google.npz", "google.npz", 400),
    ],
)
def test_flipped_bytes_give_clean_errors(originals, tmp_path, model, pattern, head):
    if (originals / model).is_dir():
        shutil.copytree(originals / model, tmp_path, dirs_exist_ok=True)
    else:
        shutil.copy(originals / model, tmp_path)
    file = next(tmp_path.glob(pattern))
    content = file.read_bytes()
    rng = np.random.default_rng(sum(map(ord, model + pattern)))
    refused = 0
    for _ in range(TRIALS):
        file.write_bytes(flipped(content, rng, head))
        try:
            load(tmp_path)
        except CheckpointError as error:
            refused += 1
            assert str(tmp_path) in str(error)
    assert TRIALS // 6 < refused <= TRIALS, "the damage does not reach what is read"
    file.write_bytes(content)
    load(tmp_path)
