"""A whole model for a bundle that has none: the teacher of a trained bottleneck, say, as fallback and as baseline."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from ..runtime.bundle import Bundle, BundleWriter
from ..runtime.errors import ModelError, UsageError
from ..runtime.manifest import Half, Manifest
from .batch import with_batch
from .load import Source, load
from .model import Model
from .preprocess import with_pictures
from .prove import Feeder
from .runner import Runner
from .store import write

WHOLE = "local.onnx"


def add_whole(
    bundle: Bundle,
    model: Source,
    output: str | Path,
    *,
    halves: Collection[Half] = tuple(Half),
    weights: str | Path | None = None,
) -> Bundle:
    """A copy of a bundle with a whole model beside its cuts. It is the model that was said, and not the cuts' own.

    Args:
        bundle: both of its halves.
        model: what `load` takes; without preprocessing, which is the bundle's. Its outputs are the bundle's, in order.
        output: where the copy goes.
        halves: who gets it.
        weights: what `load` takes.

    Raises:
        ModelError: the model cannot be read or run, or has other outputs.
        UsageError: the bundle takes batches and the model does not.
        BundleError: something else is at `output`.
    """
    manifest = bundle.manifest
    full = load(model, weights)
    if manifest.preprocess is not None:
        full = with_pictures(full, manifest.preprocess)
    if manifest.batched:
        batched = with_batch(full)
        if batched is None:
            raise UsageError(f"{manifest.name!r} takes batches of any length, {full.name} does not")
        full = batched
    full = _named(full, manifest)
    _try(full, manifest)
    with BundleWriter(Path(output)) as writer:
        for name, entry in manifest.files.items():
            if name not in (WHOLE, f"{WHOLE}.data"):
                shutil.copyfile(bundle.file(name), writer.add(name, *entry.halves))
        if write(full.proto, full.folder, writer.add(WHOLE, *halves)):
            writer.add(f"{WHOLE}.data", *halves)
        return writer.finish(replace(manifest, local=WHOLE, files={}))


def _named(model: Model, manifest: Manifest) -> Model:
    """The model with the bundle's names for its input and its outputs."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    if (len(graph.input), len(graph.output)) != (len(manifest.inputs), len(manifest.outputs)):
        raise ModelError(f"{model.name} has other inputs or outputs than {manifest.name!r}")
    for value, spec in zip(graph.input, manifest.inputs, strict=True):
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name == value.name:
                    node.input[i] = spec.name
        value.name = spec.name
    for value, output in zip(graph.output, manifest.outputs, strict=True):
        if value.name != output.tensor.name:
            graph.node.append(onnx.helper.make_node("Identity", [value.name], [output.tensor.name]))
            value.name = output.tensor.name
    return model.with_proto(proto)


def _try(model: Model, manifest: Manifest) -> None:
    """Run once, and hold the outputs' shapes against the manifest's."""
    feeder = Feeder(tuple(spec.name for spec in manifest.inputs), manifest.batched)
    frame = tuple(np.zeros([d or 1 for d in spec.shape], spec.dtype) for spec in manifest.inputs)
    made = Runner(model.proto, model.folder)(feeder.one(frame))
    for output in manifest.outputs:
        shape = made[output.tensor.name].shape[1 if manifest.batched else 0 :]
        wanted = output.tensor.shape
        if len(shape) != len(wanted) or any(w not in (None, s) for w, s in zip(wanted, shape, strict=True)):
            raise ModelError(f"{model.name} answers with {list(shape)}, {manifest.name!r} with {list(wanted)}")
