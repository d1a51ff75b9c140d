"""How much host memory it takes to load a Llama of 1.1 billion parameters in bfloat16.

    python -m experiments.benchmarks.load_memory [--folder DIR] [--scan] [--split N]

Writes random weights as sharded safetensors into a temporary folder (2.2 GB), loads
them in a fresh process, and prints the peak of that process's resident memory beside
the size of the files, and what the process held before. With `--split` the base is
split over four devices of each of N processes, and every one of them is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments import cli
from experiments.benchmarks import memory
from experiments.records import circumstances
from peftjax import storage

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}
SHARDS = 3


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write, as the command line says."""
    parser = cli.Parser(__doc__, config=False)
    parser.flag("--folder", type=Path, help="where to write; default: temporary")
    parser.flag("--scan", action="store_true", help="load stacked layers")
    parser.flag("--split", type=cli.count, default=1, help="processes that share it")
    parser.flag("--join", nargs=3, default=(), help=argparse.SUPPRESS)
    parser.flag("--load", type=Path, help=argparse.SUPPRESS)
    parser.flag("--out", type=Path, help="JSON file to write")
    options = parser.read(argv)
    if options.load:
        print(json.dumps(measure(options.load, options.scan, *options.join)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        size = write(Path(name))
        command = [sys.executable, "-m", __spec__.name, "--load", name]
        command += ["--scan"] if options.scan else []
        found = run(command, options.split)
    print(f"{found[0]['parameters']:,} parameters, files of {size / 1e9:.3f} GB")
    for one in found:
        one |= {"files": size, "peak_over_files": one["peak"] / size}
        print(f"loaded in {one['seconds']:.1f} s")
        print(f"resident before loading {one['before'] / 1e9:.3f} GB")
        times = one["peak_over_files"]
        print(f"peak {one['peak'] / 1e9:.3f} GB = {times:.3f} of the files")
    if options.out:
        one, *others = found
        others = {"others": others} if others else {}
        storage.write_json(options.out, {**one, **others, **circumstances()})


def run(command: list[str], processes: int) -> list[dict[str, float]]:
    """Run a command in each process; return what they print."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    joins = [[f"localhost:{port}", str(processes), str(i)] for i in range(processes)]
    environment = dict(os.environ)
    if processes > 1:
        environment |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    started = [
        subprocess.Popen(
            [*command, *(["--join", *join] if processes > 1 else [])],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for join in joins
    ]
    printed = [one.communicate()[0] for one in started]
    if any(one.returncode for one in started):
        raise SystemExit("a process failed; its error stands above")
    return [json.loads(text.splitlines()[-1]) for text in printed]


def measure(folder: Path, scan: bool, *join: str) -> dict[str, float]:
    """Load, and return parameters, seconds and bytes of resident memory."""
    import jax

    import peftjax as pj
    from peftjax.parallel.distributed import initialize
    from peftjax.parallel.mesh import make_mesh

    mesh = None
    if join:
        coordinator, processes, process = join
        initialize(coordinator, int(processes), int(process))
        mesh = make_mesh(1, len(jax.devices()))
    jax.devices()
    before = memory.peak()
    start = time.perf_counter()
    _, variables = pj.models.load(folder, scan_layers=scan, mesh=mesh)
    leaves = jax.block_until_ready(jax.tree.leaves(variables))
    return {
        "parameters": sum(leaf.size for leaf in leaves),
        "seconds": time.perf_counter() - start,
        "before": before,
        "peak": memory.peak(),
    }


def write(folder: Path) -> int:
    """Write the shards, their index and the configuration; return the shards' size."""
    import ml_dtypes
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    shapes = list(tensor_shapes())
    per_shard = -(-len(shapes) // SHARDS)
    index, size = {}, 0
    for number in range(SHARDS):
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        tensors = {
            name: rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
            for name, shape in shapes[number * per_shard : (number + 1) * per_shard]
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, file))
        size += (folder / file).stat().st_size
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": index})
    )
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return size


def tensor_shapes():
    """Yield the tensors of the original by name, with their shapes."""
    width, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    table = (CONFIG["vocab_size"], width)
    groups = width // CONFIG["num_attention_heads"] * CONFIG["num_key_value_heads"]
    yield "model.embed_tokens.weight", table
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for part, rows in (("q", width), ("k", groups), ("v", groups), ("o", width)):
            yield f"{layer}.self_attn.{part}_proj.weight", (rows, width)
        yield f"{layer}.mlp.gate_proj.weight", (inner, width)
        yield f"{layer}.mlp.up_proj.weight", (inner, width)
        yield f"{layer}.mlp.down_proj.weight", (width, inner)
        yield f"{layer}.input_layernorm.weight", (width,)
        yield f"{layer}.post_attention_layernorm.weight", (width,)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", table


if __name__ == "__main__":
    main()
