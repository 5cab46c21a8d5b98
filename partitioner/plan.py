"""A cut that is decided and proven, and yet to be quantised."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from ..runtime.errors import NothingToCutError, UsageError
from ..runtime.manifest import Preprocess, TensorSpec
from .batch import with_batch, with_one
from .cuts import Separation, separate
from .data import Calibration, Frame, made_up_frames, read_frames
from .graph import Graph, require_data, view
from .model import Model
from .points import list_points
from .prove import PROOF_LEVEL, Feeder, check_batch, check_exact
from .runner import Runner
from .shapes import TensorInfo, numpy_name
from .split import split

logger = logging.getLogger(__name__)

_GROUP = 8
_GROUP_ELEMENTS = 1 << 24
"""A group of frames holds at most so many elements of the cut, so that large cuts are calibrated a frame at a time."""
_MEASURED_FLOPS = 4e12
"""Bounds the proof's time: heavy models are measured on fewer frames, but never on fewer than `_MIN_MEASURED`."""
_MIN_MEASURED = 8
_NO_DATA_FRAMES = 4


@dataclass(frozen=True)
class Plan:
    """What will be written, and the data to measure it with."""

    graph: Graph
    separation: Separation
    inputs: tuple[TensorSpec, ...]
    frames: Sequence[Frame]
    calibrated: bool
    """The frames are data, not noise."""
    exact: bool
    """The proof was bit for bit, and not within the steps of float16."""

    @property
    def crossing(self) -> tuple[str, ...]:
        """All tensors that cross the link, there and back."""
        return (*self.separation.tensors, *self.separation.back)

    @property
    def feeder(self) -> Feeder:
        """How frames go into sessions."""
        return Feeder(tuple(spec.name for spec in self.inputs), self.graph.batched)

    @property
    def group(self) -> int:
        """Frames that go through a session at once."""
        elements = sum(self.graph.elements(name) for name in self.crossing)
        return max(1, min(_GROUP, _GROUP_ELEMENTS // max(1, elements)))

    def runner(self, proto: onnx.ModelProto, level: str = "all") -> Runner:
        """A graph made of the model, ready to run."""
        return Runner(proto, self.graph.model.folder, level)

    def measured(self, qualities: int) -> list[Frame]:
        """The frames to measure on: fewer for a heavy model, evenly spread."""
        flops = sum(self.graph.flops[node] for node in self.graph.data) or 1
        count = int(min(len(self.frames), max(_MIN_MEASURED, _MEASURED_FLOPS // (flops * (qualities + 1)))))
        return [self.frames[i * len(self.frames) // count] for i in range(count)]


def make_plan(
    model: Model,
    at: Sequence[str],
    until: Sequence[str],
    *,
    calibrate: Calibration | None,
    preprocess: Preprocess | None,
    limit: int,
) -> Plan:
    """Separate the graph and prove the parts, with a batch of any length where the model allows it.

    Raises:
        ModelError: as `cut_model` says.
    """
    for candidate in (with_batch(model), with_one(model)):
        if candidate is None:
            continue
        graph = view(candidate)
        require_data(graph)
        separation = separate(graph, resolve(graph, at), resolve(graph, until) if until else ())
        if graph.batched and not _all_batched(graph, separation):
            logger.info("%s: not all that crosses has the batch in front, so frames go one by one", model.name)
            continue
        inputs = tuple(spec_of(name, graph.infos[name], graph.batched) for name in graph.inputs)
        if calibrate is None:
            frames = made_up_frames(candidate.proto, graph.batched, _NO_DATA_FRAMES)
        else:
            frames = read_frames(calibrate, inputs, preprocess, limit)
        plan = Plan(graph, separation, inputs, frames, calibrated=calibrate is not None, exact=True)
        exact = _prove(plan)
        if exact is not None:
            return Plan(graph, separation, inputs, frames, calibrated=calibrate is not None, exact=exact)
    raise UsageError(f"{model.name}: the model takes neither a batch nor a single frame of this data")


def _prove(plan: Plan) -> bool | None:
    """Whether the parts are exactly the whole; None where the batch is not what it is taken for."""
    whole = plan.runner(plan.graph.model.proto, PROOF_LEVEL)
    if plan.graph.batched and not check_batch(whole, plan.feeder, plan.frames):
        return None
    protos = split(plan.graph, plan.separation, {}).protos().values()
    parts = [plan.runner(proto, PROOF_LEVEL) for proto in protos]
    half = any(info.dtype == onnx.TensorProto.FLOAT16 for info in plan.graph.infos.values())
    return check_exact(whole, parts, plan.feeder, plan.frames, half=half)


def resolve(graph: Graph, at: Sequence[str]) -> Sequence[str]:
    """The tensors that a cut's name stands for; those of the best cut when no name is given.

    Raises:
        NothingToCutError: no name is given, and no single tensor separates the graph.
    """
    if not at:
        points = list_points(graph)
        if not points:
            raise NothingToCutError(
                f"{graph.model.name}: no single tensor separates this graph; name several (--at A+B)"
            )
        return [points[0].name]
    return [part for name in at for part in (name.split("+") if not graph.is_data(name) else [name])]


def _all_batched(graph: Graph, separation: Separation) -> bool:
    """Whether all that crosses, and every output, has the batch in front."""
    names = (*separation.tensors, *separation.back, *separation.kept, *graph.outputs)
    infos = [graph.infos.get(name) for name in names]
    return all(info is not None and info.batched for info in infos)


def spec_of(name: str, info: TensorInfo, batched: bool) -> TensorSpec:
    """A tensor as the manifest says it: without its batch axis where the model takes batches."""
    dims = (info.dims or ())[1:] if batched else info.dims or ()
    return TensorSpec(name, numpy_name(info.dtype), tuple(dim.size if dim.fixed else None for dim in dims))
