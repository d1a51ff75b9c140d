"""What a training step costs on a slice of a TPU pod that is not there.

`python -m experiments.benchmarks.pod_plan --config configs/pods.py:model=llama2_7b
  --topology v5e:8x8 --fsdp 64`

Needs the extra `tpu` (`jax[tpu]`, which brings libtpu), and no TPU. The step of
`make_step` is compiled for the slice, and what is printed is read from the compiled
program: bytes per chip beside its memory, collectives with how often they run and what
they bring to a chip.
FLOPs are counted in the traced step, matrix products and convolutions alone, since XLA
counts the body of a loop once. The step time is the larger of what the chip's
published FLOP/s and links allow (`chips.py`): nothing waits, only the larger is paid,
every link is used, and the traffic of the memory, which XLA counts like the FLOPs, is
left out. A real step takes longer. `--no-gather` leaves the layout to the compiler.
`--traced` takes no compiler: the step is traced alone, every part of the base is taken
to be gathered twice, and temporaries are not known.
`--out` adds the plan to those in a file, and
`python -m experiments.benchmarks.pod_table FILE` prints them as a table.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

# The plans are made on a host without a TPU, several at a time.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import optax
from jax.experimental import topologies
from jax.extend import core as jex

import peftjax as pj
from experiments import cli
from experiments.benchmarks.chips import CHIPS, Chip
from experiments.benchmarks.program_text import Collective, collectives
from experiments.records import circumstances, plain
from experiments.tasks.task import abstract
from peftjax import storage
from peftjax.parallel.mesh import make_mesh
from peftjax.parallel.sharding import of_leaf, replicated, rows
from peftjax.training.state import fresh_state
from peftjax.training.step import make_step

GIB = 2**30


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Compile, print and write, as the command line says."""
    parser = cli.Parser(__doc__)
    parser.flag("--topology", required=True, help="such as v5e:8x8 or v5p:4x4x4")
    parser.flag("--fsdp", type=cli.count, default=1, help="chips that share a base")
    parser.flag("--no-gather", action="store_true", help="as the compiler would")
    parser.flag("--traced", action="store_true", help="without libtpu")
    parser.flag("--out", type=Path, help="JSON file of plans to add to")
    options = parser.read(argv)
    source, name = options.config, options.topology
    argument = ",".join(f"{key}={value}" for key, value in source.argument.items())
    case = source.get_config(argument)
    chip = CHIPS.get(name.partition(":")[0])
    if chip is None:
        raise SystemExit(f"--topology {name}: expected a slice of {', '.join(CHIPS)}")
    devices = _stand_ins(name) if options.traced else _devices(name)
    mesh = make_mesh(fsdp=options.fsdp, devices=devices)
    found = {
        "model": case.name,
        "method": case.method,
        "choices": argument,
        "topology": name,
        "mesh": dict(mesh.shape),
        "gather": not options.no_gather,
        **(
            traced(case, mesh, chip)
            if options.traced
            else plan(case, mesh, chip, not options.no_gather)
        ),
    }
    show(found)
    if options.out:
        add(options.out, found)


def _devices(name: str) -> Any:
    """Return the chips of a slice, as libtpu knows it."""
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:  # libtpu's own
        raise SystemExit(
            f"--topology {name}: no libtpu that knows it ({error!s:.200}); "
            "pip install 'jax[tpu]', or give --traced"
        ) from error


def _stand_ins(name: str) -> Any:
    """Return as many devices of a CPU as a slice has chips; nothing runs on them."""
    sizes = name.partition(":")[2].split("x")
    if not all(size.isdecimal() for size in sizes):
        raise SystemExit(f"--topology {name}: expected such as v5e:8x8")
    count = prod(map(int, sizes))
    jax.config.update("jax_num_cpu_devices", count)
    return jax.devices("cpu")[:count]


def add(file: Path, found: dict[str, Any]) -> None:
    """Add a plan to those in a file, in the place of an earlier one of the same."""
    known = json.loads(file.read_text()) if file.exists() else []
    same = ("choices", "topology", "mesh", "gather", "traced")
    others = [x for x in known if any(x.get(n) != found.get(n) for n in same)]
    compiler = {} if "traced" in found else {"libtpu": metadata.version("libtpu")}
    found = {**found, **compiler, **circumstances()}
    storage.write_json(file, [*others, plain(found)])


def plan(case: Any, mesh: Any, chip: Chip, gather: bool = True) -> dict[str, Any]:
    """Compile a step of a case for a mesh; return what is known of it.

    A program that does not fit the chip's memory has the compiler's message alone,
    under `error`.
    """
    start = time.perf_counter()
    traced, base, chips = trace(case, mesh, gather), abstract_base(case), mesh.size
    flops = products(traced.jaxpr) / chips
    expected = sum(_part(leaf, mesh) for leaf in jax.tree.leaves(base))
    facts: dict[str, Any] = {"flops": flops, "base_bytes": expected}
    try:
        program = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**facts, "fits": False, "error": f"{error!s:.300}"}
    memory, text = program.memory_analysis(), program.as_text()
    found = sorted(collectives(text).items(), key=lambda item: -_moved(*item))
    moved = sum(_moved(*item) for item in found)
    beside = sum(_moved(one, n) for one, n in found if one.asynchronous)
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    limits = {"flops": flops / chip.flops, "links": moved / chip.links}
    return {
        **facts,
        "fits": used < chip.memory,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "chip_bytes": chip.memory,
        "collectives": [{**one._asdict(), "times": n} for one, n in found],
        "received_bytes": moved,
        "received_while_computing": beside / moved if moved else 0.0,
        "seconds_at_least": max(limits.values()),
        "seconds": limits,
        "xla_flops_loops_once": program.cost_analysis()["flops"],
        "counted_flops_loops_once": products(traced.jaxpr, loops=False) / chips,
        "compile_seconds": time.perf_counter() - start,
    }


def traced(case: Any, mesh: Any, chip: Chip) -> dict[str, Any]:
    """Return what a traced step alone tells of a slice, with base leaves gathered.

    A split leaf is received whole in the forward pass and again in the backward, and
    the gradients of the adapters are summed; activations are with no one's plan.
    """
    program, base = trace(case, mesh, gather=True), abstract_base(case)
    flops = products(program.jaxpr) / mesh.size
    leaves = jax.tree.leaves(base)
    parts = [_part(leaf, mesh) for leaf in leaves]
    whole = [leaf.size * np.dtype(leaf.dtype).itemsize for leaf in leaves]
    gathered = 2 * sum(all_ for part, all_ in zip(parts, whole) if part < all_)
    rules = dict(case.rules)
    peft = pj.adapt(case.model.apply, base, *case.example, rules=rules, strict=True)
    trained = sum(peft.trainable.values())
    rows = sum(x.size * np.dtype(x.dtype).itemsize for x in case.batch.values())
    moved = gathered + 2 * 4 * trained
    limits = {"flops": flops / chip.flops, "links": moved / chip.links}
    return {
        "traced": True,
        "flops": flops,
        "base_bytes": sum(parts),
        # The adapters and Adam's two moments.
        "argument_bytes": sum(parts) + 3 * 4 * trained + rows,
        "chip_bytes": chip.memory,
        "received_bytes": moved,
        "seconds_at_least": max(limits.values()),
        "seconds": limits,
    }


def abstract_base(case: Any) -> Any:
    """Return the shapes of the frozen model, stored in the type it computes in."""
    found = abstract(case.model, case.example)
    dtype = case.model.dtype
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), found)


def trace(case: Any, mesh: Any, gather: bool) -> Any:
    """Return the traced step, its arguments laid out on the mesh."""
    base, optimizer = abstract_base(case), optax.adamw(1e-4)
    peft = pj.adapt(
        case.model.apply, base, *case.example, rules=dict(case.rules), strict=True
    )
    step = make_step(peft, optimizer, case.loss, mesh, gather=gather)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(functools.partial(fresh_state, peft, optimizer), key, base)

    def placed(leaf: Any, sharding: Any, times: int = 1) -> jax.ShapeDtypeStruct:
        shape = (leaf.shape[0] * times, *leaf.shape[1:]) if times > 1 else leaf.shape
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

    state = jax.tree.map(lambda leaf: placed(leaf, replicated(mesh)), state)
    base = jax.tree.map(lambda leaf: placed(leaf, of_leaf(leaf, mesh)), base)
    batch = {k: placed(x, rows(mesh), mesh.size) for k, x in case.batch.items()}
    return step.function.trace(state, base, batch)


def products(jaxpr: Any, loops: bool = True) -> int:
    """Return the FLOPs of all matrix products and convolutions, loops counted.

    >>> import jax.numpy as jnp
    >>> function = lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, length=3)
    >>> products(jax.make_jaxpr(function)(jnp.ones((2, 2))))
    48
    """
    total = 0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        out: Any = eqn.outvars[0].aval if eqn.outvars else None
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            sizes = eqn.invars[0].aval.shape
            total += 2 * prod(out.shape) * prod(sizes[i] for i in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * prod(out.shape) * prod(kernel) // features
        times = eqn.params["length"] if eqn.primitive.name == "scan" and loops else 1
        inner = [products(sub, loops) for sub in _inside(eqn)]
        total += times * (max if eqn.primitive.name == "cond" else sum)(inner or [0])
    return total


def _inside(eqn: Any) -> list[Any]:
    values = [v if isinstance(v, tuple) else (v,) for v in eqn.params.values()]
    kinds = jex.Jaxpr, jex.ClosedJaxpr
    return [v for group in values for v in group if isinstance(v, kinds)]


def _part(leaf: Any, mesh: Any) -> int:
    """Return the bytes of a base leaf on one chip."""
    shape = of_leaf(leaf, mesh).shard_shape(leaf.shape)
    return prod(shape) * np.dtype(leaf.dtype).itemsize


def _moved(one: Collective, times: int) -> int:
    """Return about how many bytes a chip receives: of a sum, both ways round."""
    return times * one.bytes * (2 if one.kind == "all-reduce" else 1)


def show(found: dict[str, Any]) -> None:
    """Print a plan."""
    print(f"{found['model']} {found['method']} on {found['topology']} {found['mesh']}")
    if "error" in found:
        print(f"  does not fit: {found['error']}")
        return
    if "traced" in found:
        print(
            f"  bytes per chip: arguments {found['argument_bytes'] / GIB:.3f} GiB "
            f"(base {found['base_bytes'] / GIB:.3f}); temporaries not known\n"
            f"  FLOPs per chip: {found['flops']:.3e}\n"
            f"  received per chip: {found['received_bytes'] / GIB:.2f} GiB\n"
            f"  a step takes at least {found['seconds_at_least']:.3f} s"
        )
        return
    used = found["argument_bytes"] + found["temporary_bytes"]
    print(
        f"  bytes per chip: arguments {found['argument_bytes'] / GIB:.3f} GiB (base "
        f"{found['base_bytes'] / GIB:.3f}), temporaries "
        f"{found['temporary_bytes'] / GIB:.3f} GiB, "
        f"{100 * used / found['chip_bytes']:.0f} % of the chip"
    )
    print(f"  FLOPs per chip: {found['flops']:.3e}")
    for one in found["collectives"]:
        beside = " while computing" if one["asynchronous"] else ""
        print(
            f"  {one['times']:4d} x {one['kind']} {one['dtype']}{list(one['shape'])}, "
            f"{one['bytes'] / 2**20:.2f} MiB{beside}"
        )
    seconds = ", ".join(f"{name} {s:.3f} s" for name, s in found["seconds"].items())
    print(
        f"  received per chip: {found['received_bytes'] / GIB:.2f} GiB, "
        f"{100 * found['received_while_computing']:.0f} % of it while computing"
    )
    print(f"  a step takes at least {found['seconds_at_least']:.3f} s ({seconds})")


if __name__ == "__main__":
    main(sys.argv[1:])
