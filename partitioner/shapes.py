"""What shape every tensor has, and how it follows from the batch and the other open dimensions of the inputs.

Symbolic shape inference loses its way in old and in hand-made graphs. So open dimensions are given numbers, ONNX's
ordinary inference runs on the numbers, and it runs again with other numbers: what changes with the batch alone is a
multiple of the batch, what equals an input's dimension every time is that dimension, and what never changes is fixed.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..runtime.errors import BundleError, ModelError
from ..runtime.session import SessionOptions, graph_errors, open_session
from .store import external_bytes, write

logger = logging.getLogger(__name__)

BATCH = "batch"
OPAQUE = "?"
_INLINE_BYTES = 2048
"""Initializers above this are no shape, so inference need not see their values."""
_TRIAL_BYTES = 512 << 20
"""Models above this are not run only to see shapes."""


@dataclass(frozen=True, slots=True)
class Dim:
    """One dimension of a tensor."""

    size: int
    """Its size for one frame, with other open dimensions at their nominal size."""
    symbol: str = ""
    """What it follows from: "" for nothing (it is fixed), `BATCH`, another open dimension, or `OPAQUE`."""

    @property
    def fixed(self) -> bool:
        """Whether it never changes."""
        return not self.symbol


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Type and shape of one tensor."""

    dtype: int
    """ONNX element type."""
    dims: tuple[Dim, ...] | None
    """None where nothing tells the rank."""
    observed: bool = False
    """Seen in a trial run alone."""

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """The shape for one frame, batch axis included."""
        return None if self.dims is None else tuple(dim.size for dim in self.dims)

    def opaque(self) -> TensorInfo:
        """The same, trusting no dimension."""
        dims = None if self.dims is None else tuple(Dim(dim.size or 1, OPAQUE) for dim in self.dims)
        return TensorInfo(self.dtype, dims, self.observed)

    @property
    def batched(self) -> bool:
        """Whether axis 0 is the batch, and no other axis depends on it."""
        if not self.dims or self.dims[0] != Dim(1, BATCH):
            return False
        return all(dim.symbol != BATCH for dim in self.dims[1:])


@dataclass(frozen=True, slots=True)
class Probe:
    """Numbers for the open dimensions."""

    batch: int
    others: Mapping[str, int]
    inverted: bool = False
    """In a trial run, integers are 2 or 3 where they else are 0 or 1: a shape that then changes hangs on values."""


Sizes = dict[str, tuple[int, tuple[int | None, ...] | None]]


def infer(proto: onnx.ModelProto, folder: Path | None = None) -> dict[str, TensorInfo]:
    """Type and shape of every tensor, from ONNX's inference, and from a trial run for those that it does not find.

    Args:
        proto: a normalised model; axis 0 of an input is its batch where that is open.
        folder: where its external data lies.
    """
    light = without_weights(proto)
    symbols = open_dimensions(proto)
    nominal = {name: nominal_size(proto, name) for name in symbols}
    probes = [Probe(1, nominal), Probe(2, nominal)]
    if symbols:
        # Each symbol gets another change, so that two of equal size are told apart; 32 keeps pyramids aligned.
        probes.append(Probe(1, {name: size + 32 * (i + 1) for i, (name, size) in enumerate(nominal.items())}))
    runs = [_run(light, proto, probe) for probe in probes]
    unknown = {name for name in _made(proto) if any(not _known(run.get(name)) for run in runs)}
    if unknown and proto.ByteSize() + external_bytes(proto) <= _TRIAL_BYTES:
        probes.append(Probe(1, nominal, inverted=True))
        runs.append(runs[0])
        runs = [run | observe(proto, folder, sorted(unknown), probe) for run, probe in zip(runs, probes, strict=True)]
    infos = {}
    for name, (dtype, shape) in runs[0].items():
        shapes = [run.get(name, (dtype, None))[1] for run in runs]
        dims = _explain(shapes, probes, symbols) if shape is not None else None
        infos[name] = TensorInfo(dtype, dims, observed=name in unknown)
    return infos


def _made(proto: onnx.ModelProto) -> list[str]:
    return [name for node in proto.graph.node for name in node.output if name]


def _known(found: tuple[int, tuple[int | None, ...] | None] | None) -> bool:
    return found is not None and found[1] is not None and None not in found[1]


def observe(proto: onnx.ModelProto, folder: Path | None, names: Sequence[str], probe: Probe) -> Sizes:
    """Run the model on made-up inputs and look at the named tensors; nothing where it does not run."""
    trial = onnx.ModelProto()
    trial.CopyFrom(proto)
    del trial.graph.output[:]
    for name in names:
        trial.graph.output.add().name = name
    with tempfile.TemporaryDirectory(prefix="narrows.") as temporary:
        path = Path(temporary) / "trial.onnx"
        try:
            write(trial, folder, path)
            session = open_session(path, SessionOptions(optimisation="disabled", quiet=True))
            arrays = _attempt(session, names, made_up_inputs(proto, probe))
        except (BundleError, ModelError) as error:
            logger.debug("the trial run for shapes fails: %s", error)
            return {}
    return {
        name: (helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, arrays, strict=True)
        if isinstance(array, np.ndarray)
    }


def _attempt(session: Any, names: Sequence[str], feed: Mapping[str, Any]) -> list[Any]:
    try:
        return list(session.run(list(names), feed))
    except graph_errors() as error:
        raise ModelError(str(error)) from None


def made_up_inputs(proto: onnx.ModelProto, probe: Probe, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs that fit a model: floats between -1 and 1, integers 0 or 1."""
    rng = np.random.default_rng(seed)
    feed = {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        shape = [size for _, size in _filled(proto, value, probe)]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if is_float(kind.elem_type):
            feed[value.name] = rng.uniform(-1, 1, shape).astype(dtype)
        else:
            feed[value.name] = (
                (rng.integers(0, 2, shape) ^ probe.inverted) + (2 * probe.inverted * (dtype.kind != "b"))
            ).astype(dtype)
    return feed


def _filled(proto: onnx.ModelProto, value: onnx.ValueInfoProto, probe: Probe) -> Iterator[tuple[Any, int]]:
    """An input's dimensions, and their sizes under a probe."""
    has_batch = batched(proto)
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        if not _is_open(dim):
            yield dim, dim.dim_value
        elif axis == 0 and has_batch:
            yield dim, probe.batch
        else:
            yield dim, probe.others.get(_symbol(value.name, axis, dim), 1)


def open_dimensions(proto: onnx.ModelProto) -> list[str]:
    """Names of the inputs' open dimensions, without the batch."""
    names: dict[str, None] = {}
    for value in proto.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if (axis or not batched(proto)) and _is_open(dim):
                names[_symbol(value.name, axis, dim)] = None
    return list(names)


def batched(proto: onnx.ModelProto) -> bool:
    """Whether axis 0 of every input is open, and the same: a batch of any length."""
    firsts = set()
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if not dims or not _is_open(dims[0]):
            return False
        firsts.add(dims[0].dim_param)
    return bool(firsts) and len(firsts - {""}) <= 1


def _is_open(dim: onnx.TensorShapeProto.Dimension) -> bool:
    return bool(dim.dim_param) or not dim.HasField("dim_value") or dim.dim_value < 0


def _symbol(value: str, axis: int, dim: onnx.TensorShapeProto.Dimension) -> str:
    return dim.dim_param or f"{value}.{axis}"


def nominal_size(proto: onnx.ModelProto, symbol: str) -> int:
    """What an open dimension is taken to be where nobody says: 224 for a picture's side, 3 for its colours, 64 else."""
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if _is_open(dim) and _symbol(value.name, axis, dim) == symbol and len(dims) == 4:
                return 3 if axis == 1 else 224
    return 64


def without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for inference: large initializers become inputs of the same type, known shapes are forgotten."""
    light = onnx.ModelProto(ir_version=proto.ir_version)
    light.opset_import.extend(proto.opset_import)
    light.graph.name = "probe"
    light.graph.node.extend(proto.graph.node)
    light.graph.input.extend(proto.graph.input)
    for value in proto.graph.output:
        light.graph.output.add().name = value.name
    for tensor in proto.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL and tensor.ByteSize() <= _INLINE_BYTES:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


def _run(light: onnx.ModelProto, proto: onnx.ModelProto, probe: Probe) -> Sizes:
    """One inference with the open dimensions filled in."""
    filled = onnx.ModelProto()
    filled.CopyFrom(light)
    for value in filled.graph.input[: len(proto.graph.input)]:  # what follows are weights
        for dim, size in list(_filled(proto, value, probe)):
            dim.Clear()
            dim.dim_value = size
    try:
        inferred = onnx.shape_inference.infer_shapes(filled, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        logger.debug("shape inference gives up: %s", error)
        inferred = filled
    graph = inferred.graph
    found = {value.name: _read(value) for values in (graph.input, graph.output, graph.value_info) for value in values}
    found |= {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer}
    return found


def _read(value: onnx.ValueInfoProto) -> tuple[int, tuple[int | None, ...] | None]:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return kind.elem_type, None
    return kind.elem_type, tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)


def _explain(
    shapes: Sequence[tuple[int | None, ...] | None], probes: Sequence[Probe], symbols: Iterable[str]
) -> tuple[Dim, ...] | None:
    """What each dimension follows from, out of its sizes under the probes."""
    first = shapes[0]
    if first is None or any(shape is None or len(shape) != len(first) for shape in shapes):
        return None
    if any(probe.inverted and shape != first for shape, probe in zip(shapes, probes, strict=True)):
        return tuple(Dim(size or 1, OPAQUE) for size in first)  # it hangs on values: who knows what others would do
    return tuple(_explain_dim(sizes, probes, symbols) for sizes in zip(*filter(None, shapes), strict=True))


def _explain_dim(sizes: Sequence[int | None], probes: Sequence[Probe], symbols: Iterable[str]) -> Dim:
    if any(size is None for size in sizes):
        return Dim(next((size for size in sizes if size), 1), OPAQUE)
    known = [size or 0 for size in sizes]
    if len(set(known)) == 1:
        return Dim(known[0])
    if all(size == known[0] * probe.batch for size, probe in zip(known, probes, strict=True)):
        return Dim(known[0], BATCH)
    for symbol in symbols:
        if all(size == probe.others[symbol] for size, probe in zip(known, probes, strict=True)):
            return Dim(known[0], symbol)
    return Dim(known[0], OPAQUE)


def numpy_name(dtype: int) -> str:
    """NumPy's name of an ONNX element type, as a manifest writes it."""
    if dtype == TensorProto.BFLOAT16:
        return "bfloat16"
    return np.dtype(helper.tensor_dtype_to_np_dtype(dtype)).name


_CROSSING = frozenset(
    {
        *(TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BOOL),
        *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
        *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    }
)


def why_not(info: TensorInfo | None) -> str | None:
    """Why a tensor cannot cross a link, or None if it can."""
    if info is None or not info.dtype:
        return "is no tensor, or of a type that nothing tells"
    if info.dtype not in _CROSSING:
        return f"is of {TensorProto.DataType.Name(info.dtype).lower()}, which does not cross a link"
    if info.dims is None:
        return "has a shape that nothing tells"
    if any(dim.size == 0 for dim in info.dims):
        return "has no elements"
    return None


def is_float(dtype: int) -> bool:
    """Whether the quantiser takes tensors of this ONNX element type."""
    return dtype in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
