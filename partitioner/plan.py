"""A cut that is decided and proven, and yet to be quantised."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx

from ..runtime.errors import NothingToCutError, UsageError
from ..runtime.manifest import Preprocess, TensorSpec
from .batch import with_batch, with_one
from .cuts import Separation, separate
from .data import DEFAULT_FRAMES, Calibration, Frame, made_up_frames, read_frames
from .graph import Graph, require_data, view
from .model import Model
from .points import list_points
from .prove import PROOF_LEVEL, Feeder, check_batch, check_exact, check_steady
from .runner import Remembered, Runner
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


class Form:
    """A model as it takes frames, batches of any length or one at a time, with the frames to try it on.

    All cuts of the model share it: it is looked at once, and what it answers is kept.
    """

    def __init__(self, model: Model, calibrate: Calibration | None, preprocess: Preprocess | None, limit: int) -> None:
        self.graph = view(model)
        require_data(self.graph)
        batched = self.graph.batched
        self.inputs = tuple(spec_of(name, self.graph.infos[name], batched) for name in self.graph.inputs)
        self.calibrated = calibrate is not None
        """The frames are data, not noise."""
        self.frames: Sequence[Frame]
        if calibrate is None:
            self.frames = made_up_frames(model.proto, batched, _NO_DATA_FRAMES)
        else:
            self.frames = read_frames(calibrate, self.inputs, preprocess, limit)
        self.feeder = Feeder(tuple(spec.name for spec in self.inputs), batched)

    @cached_property
    def deployed(self) -> Remembered:
        """The whole model, fully optimised."""
        return Remembered(Runner(self.graph.model.proto, self.graph.model.folder))

    @cached_property
    def proven(self) -> Remembered:
        """The whole model as the proof runs it."""
        return Remembered(Runner(self.graph.model.proto, self.graph.model.folder, PROOF_LEVEL))

    @cached_property
    def sound(self) -> bool:
        """Whether a batch, if it takes one, is what it is taken for.

        Raises:
            ProofError: it answers differently every time.
        """
        if self.graph.batched and not check_batch(self.proven, self.feeder, self.frames):
            return False
        check_steady(self.proven.fresh, self.feeder, self.frames)
        return True


class Uncut:
    """A model that is to be cut, once or often: what its cuts have in common is made once."""

    def __init__(
        self,
        model: Model,
        *,
        calibrate: Calibration | None = None,
        preprocess: Preprocess | None = None,
        limit: int = DEFAULT_FRAMES,
    ) -> None:
        """Take a model.

        Args:
            model: with its preprocessing in the graph.
            calibrate: what `read_frames` takes; noise is run where there is none.
            preprocess: how pictures are fitted.
            limit: at most so many frames.
        """
        self.model = model
        self._of = (calibrate, preprocess, limit)
        self._lock = threading.Lock()
        self._forms: dict[object, Form | None] = {}

    def plan(self, at: Sequence[str], until: Sequence[str] = ()) -> Plan:
        """Separate the graph and prove the parts, with a batch of any length where the model allows it.

        Raises:
            ModelError: as `cut_model` says.
        """
        for form in self.forms():
            graph = form.graph
            separation = separate(graph, resolve(graph, at), resolve(graph, until) if until else ())
            if graph.batched and not _all_batched(graph, separation):
                logger.info("%s: not all that crosses has the batch in front, so frames go one by one", self.model.name)
                continue
            with self._lock:
                sound = form.sound
            if sound:
                return Plan(form, separation, _prove(form, separation))
        raise UsageError(f"{self.model.name}: the model takes neither a batch nor a single frame of this data")

    def forms(self) -> Iterator[Form]:
        """With batches of any length where it can, then with single frames; each made when it is wanted."""
        for change in (with_batch, with_one):
            with self._lock:
                if change not in self._forms:
                    candidate = change(self.model)
                    self._forms[change] = None if candidate is None else Form(candidate, *self._of)
                form = self._forms[change]
            if form is not None:
                yield form


@dataclass(frozen=True)
class Plan:
    """What will be written, and the data to measure it with."""

    form: Form
    separation: Separation
    exact: bool
    """The proof was bit for bit, and not within the steps of float16."""

    @property
    def graph(self) -> Graph:
        """The uncut model's."""
        return self.form.graph

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's."""
        return self.form.inputs

    @property
    def frames(self) -> Sequence[Frame]:
        """To calibrate and measure with."""
        return self.form.frames

    @property
    def calibrated(self) -> bool:
        """The frames are data, not noise."""
        return self.form.calibrated

    @property
    def crossing(self) -> tuple[str, ...]:
        """All tensors that cross the link, there and back."""
        return (*self.separation.tensors, *self.separation.back)

    @property
    def feeder(self) -> Feeder:
        """How frames go into sessions."""
        return self.form.feeder

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


def _prove(form: Form, separation: Separation) -> bool:
    """Whether the parts are the whole bit for bit, and not within the steps of float16.

    Raises:
        ProofError: they are not even that.
    """
    graph = form.graph
    parts = [Runner(proto, graph.model.folder, PROOF_LEVEL) for proto in split(graph, separation, {}).protos().values()]
    half = any(info.dtype == onnx.TensorProto.FLOAT16 for info in graph.infos.values())
    return check_exact(form.proven, parts, form.feeder, form.frames, half=half)


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
