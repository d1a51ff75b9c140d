"""Eight CPU devices for every test, and the folder of real data where it exists."""

import os
from importlib.metadata import version
from pathlib import Path

os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # tests compile far more than they compute
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        # half as long to compile; later versions have no other emitters
        *["--xla_cpu_use_fusion_emitters=false"]
        * version("jaxlib").startswith("0.10."),
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# One program is compiled once, whichever test, worker or later run asks for it.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "tests")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# epath reads it once, and some test may use a path before `peftjax.storage` says so.
os.environ.setdefault("EPATH_USE_TF", "false")

import pytest

collect_ignore = ["references"]  # scripts for other environments


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data sets and weights, or skip the test by name."""
    folder = os.environ.get("PEFTJAX_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"no real data: PEFTJAX_DATA is {folder!r}; set it to their folder")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def buckets():
    """Serve buckets on this machine; return the folder `gs://runs`."""
    from tests.helpers import bucket

    with bucket.serving() as port:
        os.environ |= bucket.settings(port)
        from peftjax import storage

        yield storage.path(f"gs://{bucket.BUCKET}")


@pytest.fixture
def bucket(buckets, request) -> Path:
    """Return an empty folder of a bucket."""
    return buckets / request.node.name


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Keep the memory of a test process flat: no module uses another's programs."""
    yield
    import jax

    jax.clear_caches()
