"""Graphs that run while a cut is made: in one session, or slice by slice where the weights are many.

A slice is a run of consecutive nodes whose weights stay below `SLICE_BYTES`. Its session is opened, run and closed
before the next one, so a model of any size needs memory for a slice and for what is alive between two slices. Node
by node the kernels are those of the whole graph.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..runtime.errors import BundleError, ModelError, OperatorError, OpsetError
from ..runtime.session import SessionOptions, graph_errors, open_session
from .graph import Graph, view
from .model import Model
from .split import part_of, value_info
from .store import external_bytes, tensors

Array = NDArray[Any]

SLICE_BYTES = 256 << 20
WHOLE_BYTES = 512 << 20
"""Weights up to this are held in one session."""
_KEEP_BYTES = 64 << 20


class Runner:
    """A graph, ready to run."""

    def __init__(self, proto: onnx.ModelProto, folder: Path | None = None, level: str = "all") -> None:
        """Load the graph.

        Args:
            proto: the graph.
            folder: where its external data lies.
            level: graph optimisation.

        Raises:
            ModelError: ONNX Runtime refuses it.
        """
        self.inputs = [value.name for value in proto.graph.input]
        self.outputs = [value.name for value in proto.graph.output]
        heavy = external_bytes(proto) + proto.ByteSize() > WHOLE_BYTES
        self._steps: Sequence[_Step] = (
            _slices(proto, folder, level) if heavy else [_Step(proto, folder, level, keep=True)]
        )

    @classmethod
    def of_file(cls, path: Path, level: str = "all") -> Runner:
        """A graph from a file that this room has written."""
        return cls(onnx.load(str(path), load_external_data=False), path.parent, level)

    def __call__(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; what the graph does not take is left out.

        Raises:
            ModelError: ONNX Runtime cannot run it on this input.
        """
        alive = {name: feed[name] for name in self.inputs}
        for i, step in enumerate(self._steps):
            alive |= step(alive)
            wanted = {name for later in self._steps[i + 1 :] for name in later.inputs} | set(self.outputs)
            alive = {name: array for name, array in alive.items() if name in wanted}
        return {name: alive[name] for name in self.outputs}


class Remembered:
    """A runner that keeps its answers, 64 MiB of them at most: the same frames come again for every cut and quality."""

    def __init__(self, runner: Runner) -> None:
        self.fresh = runner
        """The runner itself, which computes every time."""
        self.inputs, self.outputs = runner.inputs, runner.outputs
        self._kept: dict[bytes, dict[str, Array]] = {}
        self._room = _KEEP_BYTES

    def __call__(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """As the runner itself; nobody may write into the arrays."""
        key = hashlib.blake2b()
        for name in self.inputs:
            array = feed[name]
            key.update(f"{name} {array.dtype.str} {array.shape}".encode())
            key.update(array.tobytes() if array.dtype != object else repr(array.tolist()).encode())
        kept = self._kept.get(key.digest())
        if kept is not None:
            return dict(kept)
        made = self.fresh(feed)
        size = sum(array.nbytes for array in made.values())
        if size <= self._room:
            self._room -= size
            self._kept[key.digest()] = made
        return dict(made)


class _Step:
    """One session of a graph; opened for every run unless it is kept."""

    def __init__(self, proto: onnx.ModelProto, folder: Path | None, level: str, *, keep: bool) -> None:
        self.inputs = [value.name for value in proto.graph.input]
        self.outputs = [value.name for value in proto.graph.output]
        self._source = (proto.SerializeToString(), SessionOptions(optimisation=level, quiet=True), folder)
        self._session = self._open() if keep else None

    def _open(self) -> Any:
        try:
            return open_session(*self._source)
        except BundleError as error:
            raise refusal(str(error)) from None

    def __call__(self, alive: Mapping[str, Array]) -> dict[str, Array]:
        session = self._session or self._open()
        try:
            results = session.run(self.outputs, {name: alive[name] for name in self.inputs})
        except graph_errors() as error:
            raise ModelError(f"the model does not run on this input: {_reason(str(error))}") from None
        if not all(isinstance(array, np.ndarray) for array in results):
            raise ModelError("the model puts out something that is no tensor")
        return dict(zip(self.outputs, results, strict=True))


def refusal(text: str) -> ModelError:
    """The error for a graph that ONNX Runtime does not load."""
    reason = f"ONNX Runtime refuses the model: {_reason(text)}"
    if "opset" in reason:
        return OpsetError(f"{reason}; export the model with an older opset, or upgrade ONNX Runtime")
    if "find an implementation" in reason or "not a registered" in reason:
        return OperatorError(f"{reason}; its CPU provider has no such kernel")
    return ModelError(reason)


def _reason(text: str) -> str:
    """What ONNX Runtime says, without its prefixes, its source files and our temporary ones."""
    line = text.strip().splitlines()[0]
    line = re.sub(r"^.*?\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)
    line = re.sub(r"Load model from \S+ failed:\s*", "", line)
    return re.sub(r"^/onnxruntime_src\S* .*?\) ", "", line)[:300]


def _slices(proto: onnx.ModelProto, folder: Path | None, level: str) -> list[_Step]:
    graph = view(Model("slices", proto, folder))
    sizes = {tensor.name: _bytes(tensor) for tensor in tensors(proto.graph)}
    steps = []
    made: set[str] = set(graph.inputs)
    groups = list(_groups(graph, sizes))
    for i, nodes in enumerate(groups):
        later = {name for group in groups[i + 1 :] for node in group for name in graph.uses[node]} | set(graph.outputs)
        here = {name for node in nodes for name in graph.nodes[node].output if name}
        last = i == len(groups) - 1
        leaving = [n for n in here if n in later] + [
            n
            for n in graph.outputs
            if last and n not in here | made  # what depends on no input
        ]
        # The model's inputs always arrive: they carry the open dimensions, and are small beside the weights.
        needed = {n for node in nodes for n in graph.uses[node]} | set(graph.inputs)
        arriving = [n for n in made if n in needed]
        steps.append(_Step(_slice(graph, nodes, arriving, leaving), folder, level, keep=False))
        made |= here
    return steps


def _slice(graph: Graph, nodes: Sequence[int], arriving: Sequence[str], leaving: Sequence[str]) -> onnx.ModelProto:
    model = part_of(graph, nodes, arriving, leaving)
    declared = {value.name: value for value in graph.model.proto.graph.input}
    for name in arriving:
        info = graph.infos[name]
        model.graph.input.append(declared.get(name) or value_info(name, info.dtype, info.dims))
    for name in leaving:
        info = graph.infos[name]
        model.graph.output.append(value_info(name, info.dtype, info.dims))
    return model


def _groups(graph: Graph, sizes: Mapping[str, int]) -> Iterator[tuple[int, ...]]:
    """The data nodes in order, cut where the weights of a group would pass `SLICE_BYTES`."""
    group: list[int] = []
    weights: set[str] = set()
    for node in graph.data:
        more = weights | graph.needs[node][0]
        if group and sum(sizes.get(name, 0) for name in more) > SLICE_BYTES:
            yield tuple(group)
            group, more = [], set(graph.needs[node][0])
        group.append(node)
        weights = more
    yield tuple(group)


def _bytes(tensor: onnx.TensorProto) -> int:
    itemsize = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    return int(np.prod(tensor.dims, dtype=np.int64)) * itemsize
