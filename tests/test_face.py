"""What `import peftjax` gives, and what it does not load."""

import subprocess
import sys
import tomllib
from pathlib import Path

import peftjax as pj

ROOT = Path(__file__).parents[1]


def test_every_public_name_is_there_and_listed():
    assert set(pj.__all__) <= set(dir(pj))
    assert all(getattr(pj, name) is not None for name in dir(pj))
    assert pj.__version__ and (ROOT / "peftjax" / "py.typed").exists()


def test_importing_loads_neither_nnx_nor_a_kernel_nor_an_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {"grain", "rich", "scipy", "sklearn", "tensorboardX", "pyarrow", "PIL"}
    names |= {
        "gguf",
        "huggingface_hub",
        "jinja2",
        "lm_eval",
        "tensorflow_datasets",
        "tokenizers",
        "matplotlib",
        "ml_collections",
        "wandb",
    }
    listed = str(extras["optional-dependencies"])
    assert "grain" in listed and "matplotlib" in listed
    script = (
        "import jax, flax.linen, sys; before = set(sys.modules)\n"
        "import peftjax as pj; pj.adapt, pj.LoRA, pj.hub, pj.presets, pj.search\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})\n"
        "print({'flax.nnx', 'jax.experimental.pallas'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded, slow = done.stdout.splitlines()
    assert not names & set(loaded.split()) and slow == "set()"
