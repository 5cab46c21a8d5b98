"""How long each node takes, from one profiled run of the whole graph: the head of every cut, timed at once.

ONNX Runtime runs the graph optimised, as it is deployed, and says what each kernel took. Its optimiser fuses nodes and
changes their layout; what it makes keeps the name of a tensor of the original graph as its output's, or, with its
blocked layout, as its node's name ("…_nchwc"). A kernel that has neither (a change of layout between two others) counts
to the next that has.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx

from ..runtime.errors import BundleError, ModelError, NothingToCutError
from ..runtime.manifest import Preprocess
from ..runtime.session import CPU, OPTIMISED, SessionOptions, graph_errors, open_session
from .batch import with_batch, with_one
from .cuts import Flow
from .data import Calibration, made_up_frames, read_frames
from .graph import Graph, require_data, view
from .model import Model
from .plan import spec_of
from .points import CutPoint, list_points
from .preprocess import with_pictures
from .prove import Feeder
from .runner import Array, refusal
from .search import MAX_TENSORS

_RUNS = 7
_WARM_UP = 2
_KERNEL = "_kernel_time"
_BLOCKED = "_nchwc"


@dataclass(frozen=True)
class NodeTimes:
    """Milliseconds of each data node, for one frame."""

    graph: Graph
    ms: tuple[float, ...]
    """In the order of `graph.data`; fused nodes have their time where the last of them is."""

    @property
    def total_ms(self) -> float:
        """Of the whole graph."""
        return float(sum(self.ms))

    def heads_ms(self, points: Sequence[CutPoint]) -> list[float]:
        """Of the head of each cut."""
        flow = Flow(self.graph)
        sums = np.concatenate([[0.0], np.cumsum(self.ms)])
        return [self._head_ms(flow, sums, [tensor.name for tensor in point.tensors]) for point in points]

    def _head_ms(self, flow: Flow, sums: Array, names: Sequence[str]) -> float:
        tail = flow.tail_of(names)
        start = (tail & -tail).bit_length() - 1  # all before it is in the head
        total = float(sums[start])
        extra = (~tail & ((1 << len(self.ms)) - 1)) >> start
        while extra:
            low = extra & -extra
            total += self.ms[start + low.bit_length() - 1]
            extra ^= low
        return total


@dataclass(frozen=True)
class Survey:
    """Every cut of one tensor with the time of its head: one profiled run of the whole graph has them all."""

    points: tuple[CutPoint, ...]
    """By ascending work before the cut."""
    heads_ms: tuple[float, ...]
    """Scaled to `whole_ms`, since the profiler itself takes time."""
    whole_ms: float
    """Of the whole model, without the profiler: median."""


def survey(
    model: Model,
    *,
    calibrate: Calibration | None = None,
    preprocess: Preprocess | None = None,
    options: SessionOptions | None = None,
) -> Survey:
    """Time the heads of all cuts of a model.

    Args:
        model: without its preprocessing.
        calibrate: what `read_frames` takes; noise is run where there is none.
        preprocess: what the head will begin with.
        options: threads and optimisation; it runs on the CPU.

    Raises:
        ModelError: it cannot be run; `NothingToCutError`, no tensor or small set of them separates it.
    """
    full = model if preprocess is None else with_pictures(model, preprocess)
    for candidate in filter(None, (with_batch(full), with_one(full))):
        graph = view(candidate)
        require_data(graph)
        inputs = tuple(spec_of(name, graph.infos[name], graph.batched) for name in graph.inputs)
        if calibrate is None:
            frames = made_up_frames(candidate.proto, graph.batched, 1)
        else:
            frames = read_frames(calibrate, inputs, preprocess, 1)
        feed = Feeder(tuple(spec.name for spec in inputs), graph.batched).one(frames[0])
        try:
            times = time_nodes(graph, feed, options)
            break
        except ModelError:
            if not graph.batched:
                raise
    whole_ms = _whole_ms(graph, feed, options or SessionOptions())
    points = _points(model)
    scale = whole_ms / times.total_ms if times.total_ms else 1.0
    heads = times.heads_ms(points)
    order = sorted(range(len(points)), key=lambda i: (heads[i], points[i].depth))
    return Survey(tuple(points[i] for i in order), tuple(heads[i] * scale for i in order), whole_ms)


def _points(model: Model) -> list[CutPoint]:
    """Cuts of one tensor; of more where there is none."""
    graph = view(with_batch(model) or model)
    points = list_points(graph) or list_points(graph, MAX_TENSORS)
    if not points:
        raise NothingToCutError(f"{model.name}: no {MAX_TENSORS} tensors or fewer separate this graph")
    return points


def _whole_ms(graph: Graph, feed: Mapping[str, Array], options: SessionOptions) -> float:
    options = replace(options, providers=(CPU,))
    session = open_session(graph.model.proto.SerializeToString(), options, graph.model.folder)
    taken = []
    for _ in range(_RUNS + _WARM_UP):
        began = time.perf_counter()
        session.run(None, dict(feed))
        taken.append((time.perf_counter() - began) * 1000)
    return median(taken[_WARM_UP:])


def time_nodes(graph: Graph, feed: Mapping[str, Array], options: SessionOptions | None = None) -> NodeTimes:
    """Run a graph with ONNX Runtime's profiler.

    Args:
        graph: the uncut model.
        feed: one frame, as the graph takes it.
        options: threads and optimisation. It runs on the CPU, for another provider's compiled graph has no nodes.

    Raises:
        ModelError: ONNX Runtime refuses the graph, or cannot run it on this input.
    """
    options = options or SessionOptions()
    proto = onnx.ModelProto()
    proto.CopyFrom(graph.model.proto)
    for node in proto.graph.node:
        node.name = next(name for name in node.output if name)  # so that every node has a name, and one of its own
    with tempfile.TemporaryDirectory(prefix="narrows-nodes-") as name:
        trace = Path(name)
        traced = SessionOptions(threads=options.threads, optimisation=options.optimisation, quiet=True, trace=trace)
        try:
            session = open_session(proto.SerializeToString(), traced, graph.model.folder)
            for _ in range(_RUNS):
                session.run(None, dict(feed))
            events = json.loads(Path(session.end_profiling()).read_text())
        except BundleError as error:
            raise refusal(str(error)) from None
        except graph_errors() as error:
            raise ModelError(f"the model does not run on this input: {error}") from None
        optimised = onnx.load(str(trace / OPTIMISED), load_external_data=False)
    return NodeTimes(graph, _attribute(graph, optimised, _kernels_ms(events)))


def _kernels_ms(events: Iterable[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """Every kernel's node and its median time, in the order in which they ran."""
    taken: dict[str, list[float]] = defaultdict(list)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_KERNEL):
            taken[name.removesuffix(_KERNEL)].append(float(event["dur"]) / 1000)
    return [(name, median(times[_WARM_UP:] or times)) for name, times in taken.items()]


def _attribute(graph: Graph, optimised: onnx.ModelProto, kernels: Sequence[tuple[str, float]]) -> tuple[float, ...]:
    """Each kernel's time to the original node that made what it makes."""
    position = {node: i for i, node in enumerate(graph.data)}
    made = {name: position[node] for name, node in graph.producer.items() if node in position}
    places = {}
    for node in optimised.graph.node:
        for name in (*node.output, node.name.removesuffix(_BLOCKED)):
            if name in made:
                places[node.name] = made[name]
                break
    ms = [0.0] * len(graph.data)
    pending = 0.0
    last = 0
    for name, took in kernels:
        pending += took
        if name in places:
            last = places[name]
            ms[last] += pending
            pending = 0.0
    ms[last] += pending
    return tuple(ms)
