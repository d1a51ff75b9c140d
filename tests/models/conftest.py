"""What the tests of models share."""

import shutil

import pytest

from tests.helpers.model_cases import BERT


@pytest.fixture
def copy(tmp_path):
    """Return a function that copies a checkpoint to a folder of the test's own."""

    def make(path=BERT):
        return shutil.copytree(path, tmp_path / "copy")

    return make
