"""One layer that the torch library adapted, read by the codec of its method."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import peftjax as pj
from peftjax.core.method import Layer
from peftjax.hub.torch.codec import Codec, Entry, Tensor
from peftjax.hub.torch.codecs import FIELDS, READERS, codec_of
from peftjax.hub.torch.config import complete
from tests.helpers.goldens import KEY, check_dense, close, gradients, load

WIDE = Layer(384, 256, kernel=jnp.ones((384, 256)))


@dataclass
class TorchLayer:
    """A reference of `make_method_references.py`, in our names and layouts."""

    name: str

    @cached_property
    def found(self) -> dict[str, Any]:
        return load(f"{self.name}_peft_linear")

    @cached_property
    def config(self) -> Any:
        return complete(json.loads(str(self.found["config_json"])), FIELDS)

    @cached_property
    def method(self) -> pj.Method:
        return self._read({k: tuple(a.shape) for k, a in self._under("state.").items()})

    @cached_property
    def wide(self) -> pj.Method:
        """The method on the wide layer: sizes in it may be those of the layer."""
        found = self._under("wide_shape.")
        return self._read({key: tuple(map(int, s)) for key, s in found.items()})

    def _under(self, start: str) -> dict[str, Any]:
        found = self.found.items()
        return {k.removeprefix(start): v for k, v in found if k.startswith(start)}

    def _read(self, shapes: dict[str, tuple[int, ...]]) -> pj.Method:
        reader = READERS[self.config["peft_type"]]
        return reader.read(Entry(self.config, "lin", True, shapes, shapes))

    @property
    def codec(self) -> Codec:
        return codec_of(self.method)

    @property
    def layer(self) -> Layer:
        kernel = self.found["weight"].T
        given = kernel if self.method.needs_kernel else None
        return Layer(*kernel.shape, "dense", given, "lin")

    @property
    def tensors(self) -> dict[str, Tensor]:
        own = self.codec.tensors(self.method, self.layer)
        return {**own, **self.codec.shared(self.method, self.layer)}

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """Return the arrays under `prefix` by our names; those without any are left."""
        found: dict[str, np.ndarray] = {}
        for name, one in self.tensors.items():
            value = self.found.get(f"{prefix}.{one.suffix}")
            if value is not None:
                assert value.shape == one.shape, (name, value.shape, one.shape)
                found[name] = one.to_ours(value, self.layer)
        return found

    @cached_property
    def p(self) -> dict[str, np.ndarray]:
        """The arrays of the file, and those of a fresh adapter that it leaves out."""
        fresh = self.codec.fresh
        start = self.method.init(KEY, self.layer) if fresh else {}
        return {**self.arrays("state"), **{name: start[name] for name in fresh}}


def check_torch_layer(name: str, start: bool = True) -> TorchLayer:
    """Compare values, merged layer, gradients, counts, starts and files of a case.

    Every tensor of the library's file is one of the method's arrays, and the other way
    round; written back they and the configuration are the library's own.

    Args:
        name: of the case.
        start: whether fresh arrays are compared one by one.
    """
    case = TorchLayer(name)
    method, p = case.method, case.p
    check_dense(method, p, case.found)
    found, expected = gradients(method, p, case.found), case.arrays("grad")
    assert expected
    for key, value in expected.items():
        close(found[key], value)
    trained = {key for key in p if key not in (*method.frozen, *method.shared)}
    assert trained == expected.keys() - {*method.shared}
    assert method.count(case.layer) == sum(p[key].size for key in trained)
    _check_written(case)
    if start:
        _check_start(case)
    return case


def _check_written(case: TorchLayer) -> None:
    suffixes = {one.suffix for one in case.tensors.values()}
    saved = {key[6:] for key in case.found if key.startswith("state.")}
    assert suffixes | {*case.codec.zeros(case.method, case.layer)} == saved
    for name, one in case.tensors.items():
        back = one.to_torch(case.p[name], case.layer)
        np.testing.assert_array_equal(back, case.found[f"state.{one.suffix}"])
    written = case.codec.write({"lin": case.method}, {"lin"})
    assert written == {key: case.config[key] for key in written}
    again = complete({"peft_type": case.codec.peft_type, **written}, FIELDS)
    shapes = {one.suffix: one.shape for one in case.tensors.values()}
    reader = READERS[case.codec.peft_type]
    assert reader.read(Entry(again, "lin", True, shapes, shapes)) == case.method


def _check_start(case: TorchLayer) -> None:
    """Compare numbers that are no draws exactly, and draws by their distribution."""
    fresh, theirs = case.method.init(KEY, case.layer), case.arrays("init_state")
    other = case.method.init(jax.random.key(1), case.layer)
    for name, value in theirs.items():
        assert fresh[name].shape == value.shape and fresh[name].dtype == value.dtype
        if np.array_equal(fresh[name], other[name]):
            close(fresh[name], value)
            continue
        wide = case.found[f"wide.{case.tensors[name].suffix}"]
        mean, deviation, largest = wide
        drawn = np.asarray(case.wide.init(KEY, WIDE)[name])
        noise = 4 / drawn.size**0.5
        assert abs(drawn.mean() - mean) < (0.1 + noise) * deviation, name
        np.testing.assert_allclose(drawn.std(), deviation, rtol=0.05 + noise)
        np.testing.assert_allclose(np.abs(drawn).max(), largest, rtol=0.2 + noise)
