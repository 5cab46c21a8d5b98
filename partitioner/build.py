"""From a model to a bundle: the functions that the command line calls."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..runtime.bundle import Bundle, BundleWriter
from ..runtime.errors import NothingToCutError, SourceError
from ..runtime.manifest import SCHEMA, CrossingTensor, Cut, Half, Manifest, OutputSpec, Preprocess, Quality
from ..runtime.session import runtime
from .batch import with_batch
from .calibrate import Progress
from .calibrate import calibrate as calibrate_steps
from .data import DEFAULT_FRAMES, Calibration
from .golden import write_golden
from .graph import Graph, require_data, view
from .load import load
from .model import Model
from .plan import Plan, Uncut, spec_of
from .points import CutPoint, list_points
from .preprocess import parse, with_pictures
from .prove import PROOF_LEVEL, AnyRunner, classify, measure
from .quantise import Quantiser, QuantiserTable
from .runner import Remembered, Runner
from .search import MAX_TENSORS
from .shapes import OPAQUE, Dim, TensorInfo
from .split import Crossing, Parts, split
from .store import model_digest, write
from .tables import TABLES, payload_counter, write_tables

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]

DEFAULT_QUANTISER = Quantiser()
_FILES = {"head": Half.DEVICE, "tail": Half.SERVER, "final": Half.DEVICE}


def list_cuts(
    model: str | Path | Model | torch.nn.Module,
    max_tensors: int = MAX_TENSORS,
    *,
    weights: str | Path | None = None,
) -> list[CutPoint]:
    """Where a model can be cut, best first.

    Args:
        model: what `load` takes.
        max_tensors: at most so many tensors to a cut.
        weights: what `load` takes.

    Returns:
        The cuts with their prices; first those marked `pareto`, which no other beats in both bytes and work before it.

    Raises:
        ModelError: it cannot be read; `NothingToCutError`, there is no such cut.
    """
    loaded = load(model, weights)
    graph = view(with_batch(loaded) or loaded)
    require_data(graph)
    points = list_points(graph, max_tensors)
    if not points:
        raise NothingToCutError(
            f"{loaded.name}: no {max_tensors} tensors or fewer separate this graph; raise --max-tensors"
        )
    return points


@dataclass(frozen=True)
class Prepared:
    """A model that `cut_model` can cut again and again; see `prepare`."""

    uncut: Uncut
    digest: str
    """Of the model as it was given."""
    preprocess: Preprocess | None


def prepare(
    model: str | Path | Model | torch.nn.Module,
    *,
    calibrate: Calibration | None = None,
    preprocess: str | Preprocess | None = None,
    weights: str | Path | None = None,
    frames: int = DEFAULT_FRAMES,
) -> Prepared:
    """Do once what all cuts of a model have in common: read it and the frames, and run the whole model on these.

    Args:
        model: what `load` takes.
        calibrate: as for `cut_model`, and so the others.

    Raises:
        ModelError: it cannot be read.
        UsageError: options that contradict each other or the model.
    """
    loaded = load(model, weights)
    digest = model_digest(loaded.proto, loaded.folder)
    wanted = parse(preprocess, loaded)
    if wanted is not None:
        loaded = with_pictures(loaded, wanted)
    return Prepared(Uncut(loaded, calibrate=calibrate, preprocess=wanted, limit=frames), digest, wanted)


def cut_model(
    model: str | Path | Model | torch.nn.Module | Prepared,
    at: str | Sequence[str] | None = None,
    *,
    output: str | Path,
    calibrate: Calibration | None = None,
    preprocess: str | Preprocess | None = None,
    labels: str | Path | Sequence[str] | None = None,
    until: str | Sequence[str] | None = None,
    weights: str | Path | None = None,
    quantiser: Quantiser | None = DEFAULT_QUANTISER,
    whole: Collection[Half] = (),
    name: str | None = None,
    frames: int = DEFAULT_FRAMES,
    progress: Progress | None = None,
) -> Bundle:
    """Cut a model, prove the cut, and write the bundle.

    Args:
        model: what `load` takes; or what `prepare` made of it, with the calibration data, preprocessing, weights and
            number of frames that were given there.
        at: the tensor or the tensors to cut at, several also joined by "+"; the best single tensor when None.
        until: the tensors that come back, for a three-way cut: head and final part on the device, the body between `at`
            and `until` on the server, so that neither the input nor the answer leaves the device.
        weights: what `load` takes.
        output: where the bundle goes; nothing is there unless all went well.
        calibrate: what `read_frames` takes. Without it nothing can be quantised, and the proof runs on noise.
        preprocess: what `preprocess.parse` takes; None for a model that takes raw tensors.
        labels: class names, or a file with one a line.
        quantiser: the ladder of qualities; None lets the tensors cross as they are.
        whole: the halves that carry the whole model as well: the device's, as its fallback; the server's, so that
            pictures can be sent to it.
        name: what devices ask a server for; the name of the output's folder when None.
        frames: at most so many calibration frames.
        progress: told of every step.

    Raises:
        ModelError: the model cannot be read or does not run; `UnknownTensorError`, `CutError`, `ProofError` are some.
        SourceError: calibration data that cannot be read.
        UsageError: options that contradict each other or the model.
        BundleError: something else is at `output`.
    """
    tell = progress or _quietly
    if not isinstance(model, Prepared):
        model = prepare(model, calibrate=calibrate, preprocess=preprocess, weights=weights, frames=frames)
    names = read_labels(labels)
    with BundleWriter(Path(output)) as writer:
        tell("proving the cut", 0, 1)
        plan = model.uncut.plan(_names(at), _names(until))
        tell("proving the cut", 1, 1)
        cut, outputs = write_cut(plan, calibrate_steps(plan, quantiser, tell), writer, tell)
        check_labels(names, outputs)
        return writer.finish(
            manifest_of(
                plan,
                cut,
                outputs,
                name=name or Path(output).name,
                preprocess=model.preprocess,
                labels=names,
                local=_write_whole(plan, whole, writer),
                model=model.digest,
            )
        )


def manifest_of(
    plan: Plan,
    cut: Cut,
    outputs: tuple[OutputSpec, ...],
    *,
    name: str,
    preprocess: Preprocess | None,
    labels: tuple[str, ...],
    local: str | None = None,
    model: str | None = None,
    accuracy: float | None = None,
) -> Manifest:
    """What a bundle of one cut says of itself; its files are listed when it is finished.

    Args:
        plan: the cut, proven.
        cut: as it was written.
        outputs: of the model.
        name: what devices ask for; made to fit.
        preprocess: how pictures become the model's input.
        labels: of the classes.
        local: file of the whole model.
        model: digest of the uncut model.
        accuracy: of the uncut model.
    """
    return Manifest(
        schema=SCHEMA,
        name=bundle_name(name),
        made_by=made_by(),
        batched=plan.graph.batched,
        inputs=plan.inputs,
        outputs=outputs,
        cuts=(cut,),
        files={},
        preprocess=preprocess,
        labels=labels,
        local=local,
        tables=TABLES if any(tensor.tables for tensor in cut.crossing) else None,
        model=model,
        accuracy=accuracy,
    )


def _quietly(_stage: str, _done: int, _total: int) -> None:
    """What is told to nobody."""


def _names(given: str | Sequence[str] | None) -> Sequence[str]:
    return [given] if isinstance(given, str) else list(given or ())


def write_cut(
    plan: Plan, tables: Mapping[str, QuantiserTable], writer: BundleWriter, tell: Progress
) -> tuple[Cut, tuple[OutputSpec, ...]]:
    """Write the graphs and the golden vectors, and measure every quality.

    Args:
        plan: the cut, proven.
        tables: quantiser tables of the tensors that cross; one without a table crosses as it is.
        writer: of the bundle.
        tell: told of every step.

    Returns:
        The cut, and what the model answers with.
    """
    parts = split(plan.graph, plan.separation, tables)
    for part, proto in parts.protos().items():
        path = writer.add(f"{part}.onnx", _FILES[part])
        if write(proto, plan.graph.model.folder, path):
            writer.add(f"{part}.onnx.data", _FILES[part])
    # What is measured are the files as they will be deployed.
    made = {part: Runner.of_file(writer.root / f"{part}.onnx") for part in parts.protos()}
    # The tables are learnt from what the head makes of frames that it sees again when the qualities are measured.
    runners: dict[str, AnyRunner] = {**made, "head": Remembered(made["head"])}
    levels = next(iter(tables.values())).levels if tables else ()
    crossing = tuple(_crossing_tensor(c, plan.graph, levels) for c in parts.crossing)
    crossing = write_tables(plan, runners["head"], crossing, parts.quality_input, writer, tell)
    qualities, outputs = _measure(
        plan, parts, runners, payload_counter(crossing, writer, batched=plan.graph.batched), levels, tell=tell
    )
    cut = Cut(
        name=_cut_name(parts),
        head="head.onnx",
        tail="tail.onnx",
        crossing=crossing,
        qualities=qualities,
        quality_input=parts.quality_input,
        head_inputs=parts.head_inputs,
        head_outputs=parts.head_outputs,
        tail_outputs=parts.tail_outputs,
        golden_head="golden/head.npz",
        golden_tail="golden/tail.npz",
        back=tuple(_crossing_tensor(c, plan.graph, levels) for c in parts.back),
        final="final.onnx" if parts.final is not None else None,
        kept=parts.kept,
        final_outputs=parts.final_outputs,
        golden_final="golden/final.npz" if parts.final is not None else None,
        symbols_exact=plan.exact,
    )
    write_golden(plan, cut, runners, writer)
    return cut, outputs


def _write_whole(plan: Plan, halves: Collection[Half], writer: BundleWriter) -> str | None:
    """Write the uncut model, preprocessing included, for the halves that want it; its file name."""
    if not halves:
        return None
    name = "local.onnx"
    if write(plan.graph.model.proto, plan.graph.model.folder, writer.add(name, *halves)):
        writer.add(f"{name}.data", *halves)
    return name


def _cut_name(parts: Parts) -> str:
    name = "+".join(c.tensor for c in parts.crossing)
    return name + (" … " + "+".join(c.tensor for c in parts.back) if parts.back else "")


def _measure(
    plan: Plan,
    parts: Parts,
    runners: Mapping[str, AnyRunner],
    payload_bytes: Callable[[Mapping[str, Array], int], int],
    levels: tuple[int, ...],
    *,
    tell: Progress,
) -> tuple[tuple[Quality, ...], tuple[OutputSpec, ...]]:
    whole = plan.form.deployed
    groups = list(plan.feeder.groups(plan.measured(max(1, len(levels))), plan.group))
    references = [whole(feed) for feed, _ in groups]
    batched = plan.graph.batched
    kinds = {name: classify(references, name, batched) for name in plan.graph.outputs}
    outputs = tuple(
        OutputSpec(spec_of(name, _info(plan.graph, name, references[0][name]), batched), kind)
        for name, kind in kinds.items()
    )
    qualities = measure(
        list(runners.values()),
        plan.feeder,
        groups=groups,
        references=references,
        payload_bytes=payload_bytes,
        qualities=[math.log2(level) for level in levels] or [_plain_bits(parts.crossing)],
        quality_input=parts.quality_input,
        classifier=next((name for name, kind in kinds.items() if kind != "tensor"), None),
        progress=lambda done, total: tell("measuring the qualities", done, total),
    )
    return qualities, outputs


def _crossing_tensor(crossing: Crossing, graph: Graph, levels: tuple[int, ...]) -> CrossingTensor:
    table = crossing.table
    axis = table.axis if table is not None else None
    if axis is not None and graph.batched:
        axis -= 1
    info = TensorInfo(crossing.symbols_dtype, crossing.info.dims)
    spec = spec_of(crossing.symbols, info, graph.batched)
    if table is None:
        # What a model quantises itself has an alphabet, too, and is coded by it.
        levels = (256,) * max(1, len(levels)) if spec.dtype == "uint8" else ()
    return CrossingTensor(crossing.tensor, spec, levels, axis)


def _info(graph: Graph, name: str, example: Array) -> TensorInfo:
    """An output's type and shape; where inference knows nothing, the example says the rank."""
    info = graph.infos.get(name)
    if info is not None and info.dims is not None and info.dtype:
        return info
    dtype = onnx.helper.np_dtype_to_tensor_dtype(example.dtype)
    return TensorInfo(dtype, tuple(Dim(size, OPAQUE) for size in example.shape))


def _plain_bits(crossing: Sequence[Crossing]) -> float:
    widths = [np.dtype(onnx.helper.tensor_dtype_to_np_dtype(c.info.dtype)).itemsize * 8 for c in crossing]
    return float(max(widths))


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


def check_labels(labels: Sequence[str], outputs: Sequence[OutputSpec]) -> None:
    """Refuse names that cannot be those of the classes.

    Raises:
        SourceError: another number of names than of classes.
    """
    classes = next((output.tensor.shape[-1] for output in outputs if output.kind != "tensor"), None)
    if labels and classes is not None and len(labels) != classes:
        raise SourceError(f"{len(labels)} labels for {classes} classes; give one line a class, in the model's order")


def bundle_name(text: str) -> str:
    """A model's name as a bundle carries it: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"


def made_by() -> str:
    """Program, version, and what proved the cuts, as a manifest says it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("narrows")
    except PackageNotFoundError:
        own = "from source"
    return (
        f"narrows {own}, proven by onnxruntime {runtime().__version__} CPUExecutionProvider, optimisation {PROOF_LEVEL}"
    )
