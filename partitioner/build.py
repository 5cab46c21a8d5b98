"""From a model to a bundle: the two functions that the command line calls."""

from __future__ import annotations

import logging
import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..runtime.bundle import Bundle, BundleWriter
from ..runtime.errors import CutError, SourceError, UsageError
from ..runtime.manifest import (
    SCHEMA,
    CrossingTensor,
    Cut,
    Half,
    Manifest,
    OutputSpec,
    Preprocess,
    Quality,
    TensorSpec,
)
from ..runtime.session import runtime
from .batch import with_batch, with_one
from .channels import channel_axis, useful_range
from .cuts import CutPoint, Separation, list_points, separate
from .data import DEFAULT_FRAMES, Calibration, Frame, made_up_frames, read_frames
from .graph import Graph, require_data, view
from .load import Model, load
from .preprocess import parse, with_pictures
from .prove import PROOF_LEVEL, Feeder, Runner, check_batch, check_exact, classify, measure
from .quantise import Histograms, Quantiser, QuantiserTable, RangeStatistics, choose_axis, solve
from .shapes import Dim, TensorInfo, is_float, numpy_name
from .split import Crossing, Halves, cross, split
from .store import write

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Array = NDArray[Any]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

DEFAULT_QUANTISER = Quantiser()
_GROUP = 8
_GROUP_ELEMENTS = 1 << 24
"""A group of frames holds at most so many elements of the cut, so that large cuts are calibrated a frame at a time."""
_MEASURED_FLOPS = 4e12
"""Bounds the proof's time: heavy models are measured on fewer frames, but never on fewer than `_MIN_MEASURED`."""
_MIN_MEASURED = 8
_NO_DATA_FRAMES = 4


def list_cuts(model: str | Path | Model | torch.nn.Module, max_tensors: int = 1) -> list[CutPoint]:
    """Where a model can be cut, best first.

    Args:
        model: what `load` takes.
        max_tensors: at most so many tensors to a cut.

    Returns:
        The cuts with their prices; first those marked `pareto`, which no other beats in both bytes and work before it.

    Raises:
        ModelError: it cannot be read, or there is nothing to cut.
    """
    loaded = load(model)
    graph = view(with_batch(loaded) or loaded)
    require_data(graph)
    return list_points(graph, max_tensors)


def cut_model(
    model: str | Path | Model | torch.nn.Module,
    at: str | Sequence[str] | None = None,
    *,
    output: str | Path,
    calibrate: Calibration | None = None,
    preprocess: str | Preprocess | None = None,
    labels: str | Path | Sequence[str] | None = None,
    quantiser: Quantiser | None = DEFAULT_QUANTISER,
    name: str | None = None,
    frames: int = DEFAULT_FRAMES,
    progress: Progress | None = None,
) -> Bundle:
    """Cut a model, prove the cut, and write the bundle.

    Args:
        model: what `load` takes.
        at: the tensor or the tensors to cut at, several also joined by "+"; the best single tensor when None.
        output: where the bundle goes; nothing is there unless all went well.
        calibrate: what `read_frames` takes. Without it nothing can be quantised, and the proof runs on noise.
        preprocess: what `preprocess.parse` takes; None for a model that takes raw tensors.
        labels: class names, or a file with one a line.
        quantiser: the ladder of qualities; None lets the tensors cross as they are.
        name: what devices ask a server for; the name of the output's folder when None.
        frames: at most so many calibration frames.
        progress: told of every step.

    Raises:
        ModelError: the model cannot be read or does not run; `UnknownTensorError`, `CutError`, `ProofError` are some.
        SourceError: calibration data that cannot be read.
        UsageError: options that contradict each other or the model.
        BundleError: something else is at `output`.
    """
    job = _Job(progress or (lambda _stage, _done, _total: None), quantiser)
    loaded = load(model)
    wanted = parse(preprocess, loaded)
    if wanted is not None:
        loaded = with_pictures(loaded, wanted)
    names = read_labels(labels)
    points = [at] if isinstance(at, str) else list(at or ())
    with tempfile.TemporaryDirectory(prefix="narrows.") as folder, BundleWriter(Path(output)) as writer:
        plan = job.plan(loaded, points, calibrate=calibrate, preprocess=wanted, limit=frames, folder=Path(folder))
        cut, outputs = job.write(plan, writer)
        return writer.finish(
            Manifest(
                schema=SCHEMA,
                name=bundle_name(name or Path(output).name),
                made_by=_made_by(),
                batched=plan.graph.batched,
                inputs=tuple(plan.inputs),
                outputs=outputs,
                cuts=(cut,),
                files={},
                preprocess=wanted,
                labels=names,
            )
        )


@dataclass(frozen=True)
class _Plan:
    """A cut that has been proven without quantiser, and is yet to be quantised."""

    graph: Graph
    separation: Separation
    inputs: list[TensorSpec]
    frames: list[Frame]
    calibrated: bool
    folder: Path
    """Holds `whole.onnx`, `head.onnx` and `tail.onnx`, unquantised."""

    @property
    def feeder(self) -> Feeder:
        return Feeder(tuple(spec.name for spec in self.inputs), self.graph.batched)

    @property
    def group(self) -> int:
        """Frames that go through a session at once."""
        elements = sum(self.graph.elements(name) for name in self.separation.tensors)
        return max(1, min(_GROUP, _GROUP_ELEMENTS // max(1, elements)))


@dataclass(frozen=True)
class _Job:
    """The steps of `cut_model`."""

    progress: Progress
    quantiser: Quantiser | None

    def plan(
        self,
        model: Model,
        at: Sequence[str],
        *,
        calibrate: Calibration | None,
        preprocess: Preprocess | None,
        limit: int,
        folder: Path,
    ) -> _Plan:
        """Separate the graph and prove the halves, with a batch of any length where the model allows it."""
        opened = with_batch(model)
        for candidate in (opened, with_one(model)):
            if candidate is None:
                continue
            self.progress("reading the graph", 0, 1)
            graph = view(candidate)
            require_data(graph)
            separation = separate(graph, _resolve(graph, at))
            if graph.batched and not _all_batched(graph, separation):
                continue
            inputs = [_spec(name, graph.infos[name], graph.batched) for name in graph.inputs]
            if calibrate is None:
                data = made_up_frames(candidate.proto, graph.batched, _NO_DATA_FRAMES)
            else:
                data = read_frames(calibrate, inputs, preprocess, limit)
            plan = _Plan(graph, separation, inputs, data, calibrate is not None, folder)
            if self._prove(plan):
                return plan
        raise UsageError(f"{model.name}: the model takes neither a batch nor a single frame of this data")

    def _prove(self, plan: _Plan) -> bool:
        """Whether the batch is what it is taken for; raises where the halves are not the whole."""
        self.progress("proving the cut", 0, 1)
        halves = split(plan.graph, plan.separation, cross(plan.graph, plan.separation, {}))
        for file, proto in (("whole", plan.graph.model.proto), ("head", halves.head), ("tail", halves.tail)):
            write(proto, plan.graph.model.folder, plan.folder / f"{file}.onnx")
        whole = Runner(plan.folder / "whole.onnx", PROOF_LEVEL)
        if plan.graph.batched and not check_batch(whole, plan.feeder, plan.frames):
            return False
        head, tail = (Runner(plan.folder / f"{half}.onnx", PROOF_LEVEL) for half in ("head", "tail"))
        check_exact(whole, head, tail, plan.feeder, plan.frames)
        self.progress("proving the cut", 1, 1)
        return True

    def write(self, plan: _Plan, writer: BundleWriter) -> tuple[Cut, tuple[OutputSpec, ...]]:
        """Quantise, write the graphs and the golden vectors, and measure every quality."""
        tables = self._calibrate(plan)
        crossing = cross(plan.graph, plan.separation, tables)
        halves = split(plan.graph, plan.separation, crossing)
        paths = []
        for file, half, proto in (("head", Half.DEVICE, halves.head), ("tail", Half.SERVER, halves.tail)):
            path = writer.add(f"{file}.onnx", half)
            if write(proto, plan.graph.model.folder, path):
                writer.add(f"{file}.onnx.data", half)
            paths.append(path)
        head, tail = Runner(paths[0]), Runner(paths[1])
        quantised = halves.quality_input is not None and self.quantiser is not None
        levels = self.quantiser.levels if quantised and self.quantiser else ()
        tensors = tuple(_crossing_tensor(c, plan.graph, len(levels)) for c in crossing)
        qualities, outputs = self._measure(plan, halves, head, tail, tensors=tensors, levels=levels)
        cut = Cut(
            name="+".join(c.tensor for c in crossing),
            head="head.onnx",
            tail="tail.onnx",
            crossing=tensors,
            qualities=qualities,
            quality_input=halves.quality_input,
            head_inputs=halves.head_inputs,
            head_outputs=halves.head_outputs,
            tail_outputs=halves.tail_outputs,
            golden_head="golden/head.npz",
            golden_tail="golden/tail.npz",
        )
        _write_golden(plan, cut, head, tail, writer)
        return cut, outputs

    def _calibrate(self, plan: _Plan) -> dict[str, QuantiserTable]:
        """Tables for the float tensors of the cut, in two passes over the data: ranges, then histograms."""
        floats = [name for name in plan.separation.tensors if is_float(plan.graph.infos[name].dtype)]
        config = self.quantiser
        if config is None or not floats:
            return {}
        if not plan.calibrated:
            raise UsageError("the quantiser needs data: give --calibrate, or switch the quantiser off")
        head = Runner(plan.folder / "head.onnx")
        names = {c.tensor: c.symbols for c in cross(plan.graph, plan.separation, {})}
        axes = {name: self._axis(plan, name, config) for name in floats}
        ranges = {name: RangeStatistics(axes[name]) for name in floats}
        self._pass(plan, head, "calibrating: ranges", ranges, names)
        useful = {name: useful_range(plan.graph, name, plan.separation.tail) for name in floats}
        histograms = {name: Histograms(axes[name], *ranges[name].bounds(useful[name])) for name in floats}
        self._pass(plan, head, "calibrating: steps", histograms, names)
        return {name: solve(histograms[name], config) for name in floats}

    def _axis(self, plan: _Plan, name: str, config: Quantiser) -> int | None:
        if not config.per_channel:
            return None
        axis = config.channel_axis if config.channel_axis is not None else channel_axis(plan.graph, name)
        return choose_axis(plan.graph.infos[name], axis, len(plan.frames))

    def _pass(
        self,
        plan: _Plan,
        head: Runner,
        stage: str,
        collectors: Mapping[str, RangeStatistics] | Mapping[str, Histograms],
        names: Mapping[str, str],
    ) -> None:
        """Run all frames through the head and show the collectors their tensors."""
        done = 0
        for feed, count in plan.feeder.groups(plan.frames, plan.group):
            made = head(feed)
            for name, collector in collectors.items():
                collector.add(made[names[name]])
            done += count
            self.progress(stage, done, len(plan.frames))

    def _measure(
        self,
        plan: _Plan,
        halves: Halves,
        head: Runner,
        tail: Runner,
        *,
        tensors: tuple[CrossingTensor, ...],
        levels: tuple[int, ...],
    ) -> tuple[tuple[Quality, ...], tuple[OutputSpec, ...]]:
        whole = Runner(plan.folder / "whole.onnx")
        groups = list(plan.feeder.groups(_measured(plan, max(1, len(levels))), plan.group))
        references = [whole(feed) for feed, _ in groups]
        batched = plan.graph.batched
        outputs = tuple(
            OutputSpec(_output_spec(plan, name, references[0][name]), classify(references, name, batched))
            for name in plan.graph.outputs
        )
        classifier = next((output.tensor.name for output in outputs if output.kind != "tensor"), None)
        qualities = measure(
            head,
            tail,
            plan.feeder,
            groups=groups,
            references=references,
            crossing=tensors,
            qualities=[math.log2(level) for level in levels] or [_plain_bits(halves.crossing)],
            quality_input=halves.quality_input,
            classifier=classifier,
            progress=lambda done, total: self.progress("measuring the qualities", done, total),
        )
        return qualities, outputs


def _resolve(graph: Graph, at: Sequence[str]) -> Sequence[str]:
    """The tensors that a cut's name stands for; those of the best cut when no name is given."""
    if not at:
        points = list_points(graph)
        if not points:
            raise CutError(f"{graph.model.name}: no single tensor separates this graph; name several (--at A --at B)")
        return [points[0].name]
    return [part for name in at for part in (name.split("+") if not graph.is_data(name) else [name])]


def _measured(plan: _Plan, qualities: int) -> list[Frame]:
    """The frames to measure on: fewer for a heavy model, evenly spread."""
    flops = sum(plan.graph.flops[node] for node in plan.graph.data) or 1
    count = int(min(len(plan.frames), max(_MIN_MEASURED, _MEASURED_FLOPS // (flops * (qualities + 1)))))
    return [plan.frames[i * len(plan.frames) // count] for i in range(count)]


def _all_batched(graph: Graph, separation: Separation) -> bool:
    """Whether all that crosses, and every output, has the batch in front."""
    infos = [graph.infos.get(name) for name in (*separation.tensors, *graph.outputs)]
    return all(info is not None and info.batched for info in infos)


def _crossing_tensor(crossing: Crossing, graph: Graph, qualities: int) -> CrossingTensor:
    table = crossing.table
    info = TensorInfo(crossing.symbols_dtype, crossing.info.dims)
    axis = table.axis if table is not None else None
    if axis is not None and graph.batched:
        axis -= 1
    levels = table.levels if table is not None else ()
    return CrossingTensor(crossing.tensor, _spec(crossing.symbols, info, graph.batched), levels, axis)


def _spec(name: str, info: TensorInfo, batched: bool) -> TensorSpec:
    dims: Sequence[Dim] = info.dims or ()
    return TensorSpec(
        name, numpy_name(info.dtype), tuple(d.size if d.fixed else None for d in (dims[1:] if batched else dims))
    )


def _output_spec(plan: _Plan, name: str, example: Array) -> TensorSpec:
    """An output's spec; where inference knows nothing, the example says the rank."""
    info = plan.graph.infos.get(name)
    if info is not None and info.dims is not None and info.dtype:
        return _spec(name, info, plan.graph.batched)
    return TensorSpec(name, example.dtype.name, (None,) * (example.ndim - plan.graph.batched))


def _plain_bits(crossing: Sequence[Crossing]) -> float:
    widths = [np.dtype(onnx.helper.tensor_dtype_to_np_dtype(c.info.dtype)).itemsize * 8 for c in crossing]
    return float(max(widths))


def _write_golden(plan: _Plan, cut: Cut, head: Runner, tail: Runner, writer: BundleWriter) -> None:
    """One frame through both halves at every quality, as each end will check it."""
    feed = plan.feeder.one(plan.frames[0])
    batched = plan.graph.batched
    taken = [spec.name for spec in plan.inputs if spec.name in cut.head_inputs]
    golden_head = {f"input/{i}": _frame(feed[name], batched) for i, name in enumerate(taken)}
    golden_tail = {}
    for quality in range(len(cut.qualities)):
        chosen = {} if cut.quality_input is None else {cut.quality_input: np.array([quality], np.int32)}
        symbols = head({**feed, **chosen})
        answers = tail({**symbols, **chosen})
        for i, tensor in enumerate(cut.crossing):
            array = _frame(symbols[tensor.symbols.name], batched)
            golden_head[f"symbols/{quality}/{i}"] = golden_tail[f"symbols/{quality}/{i}"] = array
        for i, name in enumerate(cut.tail_outputs):
            golden_tail[f"output/{quality}/{i}"] = _frame(answers[name], batched)
    for file, half, arrays in (
        (cut.golden_head, Half.DEVICE, golden_head),
        (cut.golden_tail, Half.SERVER, golden_tail),
    ):
        np.savez_compressed(writer.add(file, half), allow_pickle=False, **arrays)


def _frame(array: Array, batched: bool) -> Array:
    return array[0] if batched else array


def read_labels(labels: str | Path | Sequence[str] | None) -> tuple[str, ...]:
    """Class names, given or from a file with one a line.

    Raises:
        SourceError: the file cannot be read.
    """
    if not isinstance(labels, str | Path):
        return tuple(labels or ())
    try:
        return tuple(Path(labels).read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{labels}: no readable file of labels ({error})") from None


def bundle_name(text: str) -> str:
    """A model's name as a bundle carries it: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"


def _made_by() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("narrows")
    except PackageNotFoundError:
        own = "from source"
    return (
        f"narrows {own}, proven by onnxruntime {runtime().__version__} CPUExecutionProvider, optimisation {PROOF_LEVEL}"
    )
