"""TensorFlow made absent, and what a folder holds."""

import sys
from pathlib import Path

import pytest


class WithoutTensorFlow:
    """A finder of modules that finds all but TensorFlow."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            return None
        return self.finder.find_spec(name, path, target)


@pytest.fixture(autouse=True)
def no_tensorflow(monkeypatch):
    """Let TensorFlow be absent, also where it is installed but not imported yet."""
    if "tensorflow" in sys.modules:
        yield
        return
    finders = [WithoutTensorFlow(finder) for finder in sys.meta_path]
    monkeypatch.setattr(sys, "meta_path", finders)
    yield
    assert "tensorflow" not in sys.modules


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
