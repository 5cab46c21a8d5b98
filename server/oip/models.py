"""A served bundle as the models of the Open Inference Protocol.

Each bundle shows up as two or three models:

    NAME         the uncut model, where the bundle brings it: the model's own inputs and outputs
    NAME.split   its tails: one input, `FRAME`, a BYTES tensor `[batch, 1]` whose every element is one serialised
                 `narrows.v1.InferRequest` (the bundle's digest stands in it, so halves cannot be mixed); the outputs
                 are those that the cut of the frames leaves to the tail; an output of a further tail is `TAIL/OUTPUT`,
                 and runs where it is asked for
    NAME.tail    the tail of its first cut, as any server of the protocol might hold it: the symbols as they are, and
                 beside them the quality of each; nothing is coded, and nothing vouches for the halves

A version is the name of the bundle's folder or archive, or its digest; none means the current one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from google.protobuf.message import DecodeError

from ...protos import oip_pb2 as pb
from ...protos import split_pb2
from ...runtime.answer import Reply
from ...runtime.errors import FrameError, ModelNotFoundError, ShapeError
from ...runtime.frame import CodedTensor, Frame, FrameCodec, Limits, Mode, whole_frame
from ...runtime.halves import check_tensor
from ...runtime.manifest import Cut, Manifest, TensorSpec
from ...runtime.oip import BYTES, TAIL, Array, config_type_of, datatype_of
from ...runtime.wire import frame_from_wire
from ..catalogue import Catalogue, Served
from ..clients import Client

FRAME = "FRAME"
_RAW = "raw/1"
_PLATFORM = "narrows"


class Kind(StrEnum):
    """Which of a bundle's models; the value is what stands behind its name."""

    WHOLE = ""
    SPLIT = ".split"
    TAIL = TAIL


@dataclass(frozen=True, slots=True)
class OipModel:
    """One model of the protocol."""

    served: Served
    kind: Kind
    limits: Limits = field(default_factory=Limits)

    @property
    def name(self) -> str:
        """As clients say it."""
        return self.served.model.name + self.kind

    @property
    def version(self) -> str:
        """Name of the bundle's folder or archive."""
        return self.served.model.path.name

    @property
    def manifest(self) -> Manifest:
        """The bundle's."""
        return self.served.model.bundle.manifest

    def frames(self, inputs: dict[str, Array | list[bytes]], deadline_ms: int) -> Sequence[Frame]:
        """One frame for each element of the batch.

        Raises:
            FrameError: other inputs than the model's, or an element that is no frame of this bundle.
            ShapeError: a shape that is not the model's.
        """
        if self.kind is Kind.SPLIT:
            return list(self._split_frames(inputs, deadline_ms))
        if self.kind is Kind.TAIL:
            return list(self._tail_frames(inputs, deadline_ms))
        return list(self._whole_frames(inputs, deadline_ms))

    def tails(self, frames: Sequence[Frame], outputs: Sequence[str]) -> tuple[str, ...]:
        """The tails that the requested outputs are of; the cut's own where none is requested."""
        if self.kind is Kind.WHOLE or not frames or frames[0].cut >= len(self.manifest.cuts):
            return ()
        cut = self.manifest.cuts[frames[0].cut]
        return tuple(dict.fromkeys(_tail_of(name, cut) for name in outputs))

    def outputs(self, frame: Frame, reply: Reply, tails: Sequence[str]) -> dict[str, Array]:
        """What the tails answered, by the names that clients know."""
        if not tails:
            return reply.outputs
        own = self.manifest.cuts[frame.cut].tail_name
        first, *others = tails
        said = {first: reply.outputs, **{name: reply.further[name].outputs for name in others}}
        return {
            name if tail == own else f"{tail}/{name}": array
            for tail, arrays in said.items()
            for name, array in arrays.items()
        }

    def _output_specs(self) -> dict[str, TensorSpec]:
        specs = {output.tensor.name: output.tensor for output in self.manifest.outputs}
        if self.kind is not Kind.WHOLE:
            for cut in self.manifest.cuts[: 1 if self.kind is Kind.TAIL else None]:
                for tail, further in cut.further_tails.items():
                    specs |= {f"{tail}/{output.tensor.name}": output.tensor for output in further.outputs}
        return specs

    def metadata(self, versions: Sequence[str]) -> pb.ModelMetadataResponse:
        """Names, types and shapes."""
        batch = [-1] if self.manifest.batched else []
        tensor = pb.ModelMetadataResponse.TensorMetadata
        if self.kind is Kind.SPLIT:
            inputs = [tensor(name=FRAME, datatype=BYTES, shape=[-1, 1])]
        else:
            inputs = [
                tensor(name=spec.name, datatype=datatype_of(spec.dtype), shape=batch + _dims(spec))
                for spec in self._input_specs()
            ]
        outputs = [
            tensor(name=name, datatype=datatype_of(spec.dtype), shape=batch + _dims(spec))
            for name, spec in self._output_specs().items()
        ]
        return pb.ModelMetadataResponse(
            name=self.name, versions=versions, platform=_PLATFORM, inputs=inputs, outputs=outputs
        )

    def config(self, max_batch: int) -> pb.ModelConfig:
        """As Triton's clients know a model's configuration."""
        if self.kind is Kind.SPLIT:
            inputs = [pb.ModelInput(name=FRAME, data_type=pb.TYPE_STRING, dims=[1])]
        else:
            inputs = [
                pb.ModelInput(name=spec.name, data_type=config_type_of(spec.dtype), dims=_dims(spec))
                for spec in self._input_specs()
            ]
        outputs = [
            pb.ModelOutput(name=name, data_type=config_type_of(spec.dtype), dims=_dims(spec))
            for name, spec in self._output_specs().items()
        ]
        return pb.ModelConfig(
            name=self.name,
            platform=_PLATFORM,
            backend=_PLATFORM,
            max_batch_size=max_batch if self.manifest.batched or self.kind is Kind.SPLIT else 0,
            input=inputs,
            output=outputs,
            dynamic_batching=pb.ModelDynamicBatching(),
        )

    def _split_frames(self, inputs: dict[str, Array | list[bytes]], deadline_ms: int) -> Iterator[Frame]:
        elements = inputs.get(FRAME)
        if len(inputs) != 1 or not isinstance(elements, list):
            raise FrameError(f"{self.name!r} takes one input, {FRAME}, of BYTES [batch, 1]")
        for number, element in enumerate(elements):
            try:
                request = split_pb2.InferRequest.FromString(element)
            except DecodeError:
                raise FrameError(f"element {number} of {FRAME} is no serialised narrows.v1.InferRequest") from None
            if request.bundle != self.served.model.digest:
                raise FrameError(
                    f"element {number} is of bundle {request.bundle or 'none'}, "
                    f"and {self.name!r} here is of {self.served.model.digest}"
                )
            request.frame.id = number
            request.frame.deadline_ms = request.frame.deadline_ms or deadline_ms
            yield frame_from_wire(request.frame)

    def _input_specs(self) -> list[TensorSpec]:
        """What a model takes whose inputs are tensors."""
        if self.kind is Kind.WHOLE:
            return list(self.manifest.inputs)
        cut = self.manifest.cuts[0]
        # Its batch axis is all the shape that a quality has; a model without batches takes one quality.
        symbols = [tensor.symbols for tensor in cut.crossing]
        if cut.quality_input is None:
            return symbols
        return [*symbols, TensorSpec(cut.quality_input, "int32", () if self.manifest.batched else (1,))]

    def _tail_frames(self, inputs: dict[str, Array | list[bytes]], deadline_ms: int) -> Iterator[Frame]:
        cut, codec = self.manifest.cuts[0], FrameCodec(self.served.model.bundle, 0, self.limits)
        count = len(cut.crossing)
        for number, row in enumerate(zip(*self._columns(inputs), strict=True)):
            symbols = [np.ascontiguousarray(array) for array in row[:count]]
            for tensor, array in zip(cut.crossing, symbols, strict=True):
                check_tensor(tensor.symbols, array)
            quality = int(row[count].reshape(-1)[0]) if cut.quality_input else 0
            cut.check_quality(quality)
            yield codec.pack(number, symbols, quality, _RAW, deadline_ms)

    def _whole_frames(self, inputs: dict[str, Array | list[bytes]], deadline_ms: int) -> Iterator[Frame]:
        for number, row in enumerate(zip(*self._columns(inputs), strict=True)):
            coded = [CodedTensor(np.ascontiguousarray(array).tobytes(), array.shape) for array in row]
            yield whole_frame(number, Mode.TENSORS, coded, deadline_ms)

    def _columns(self, inputs: dict[str, Array | list[bytes]]) -> list[Array]:
        """The inputs in the model's order, each with a batch axis of the same length.

        Raises:
            FrameError: other inputs than the model's.
            ShapeError: other types, or batches of different sizes.
        """
        specs = self._input_specs()
        names = [spec.name for spec in specs]
        if set(inputs) != set(names):
            raise FrameError(f"{self.name!r} takes {', '.join(names)}; {', '.join(inputs) or 'nothing'} came")
        arrays = [inputs[name] for name in names]
        if any(isinstance(array, list) for array in arrays):
            raise FrameError(f"{self.name!r} takes no BYTES")
        columns = [np.asarray(array) for array in arrays]
        for spec, column in zip(specs, columns, strict=True):
            if column.dtype != np.dtype(spec.dtype):
                raise ShapeError(
                    f"{spec.name!r} takes {datatype_of(spec.dtype)}; {datatype_of(column.dtype.name)} came"
                )
        if not self.manifest.batched:
            columns = [column[None] for column in columns]
        if any(not column.ndim for column in columns) or len({len(column) for column in columns}) != 1:
            raise ShapeError("the inputs are batches of different sizes")
        return columns


def all_models(catalogue: Catalogue, client: Client) -> list[OipModel]:
    """Every model that a client may use, all versions."""
    found = []
    for served in catalogue:
        if client.may_use(served.model.name):
            found += [OipModel(served, kind) for kind in Kind if kind is not Kind.WHOLE or served.whole is not None]
    return sorted(found, key=lambda model: (model.name, model.version))


def bundle_name(name: str) -> str:
    """Name of the bundle's model, of a model of the protocol."""
    return name.removesuffix(_kind_of(name))


def _kind_of(name: str) -> Kind:
    return next((kind for kind in (Kind.SPLIT, Kind.TAIL) if name.endswith(kind)), Kind.WHOLE)


def find(catalogue: Catalogue, client: Client, name: str, version: str, limits: Limits | None = None) -> OipModel:
    """The model that a request names.

    Raises:
        PermissionDeniedError: the client's token does not cover it.
        ModelNotFoundError: no such model or version, or the bundle does not bring its whole model here.
    """
    kind = _kind_of(name)
    bundle = bundle_name(name)
    client.check(bundle)
    catalogue.find(bundle)
    for served in reversed(catalogue.versions(bundle)):
        if version in ("", served.model.path.name, served.model.digest):
            if kind is Kind.WHOLE and served.whole is None:
                raise ModelNotFoundError(f"{bundle!r} is served split alone: ask for {bundle}{Kind.SPLIT}")
            return OipModel(served, kind, limits or Limits())
    versions = ", ".join(served.model.path.name for served in catalogue.versions(bundle))
    raise ModelNotFoundError(f"no version {version!r} of {bundle!r}; there are {versions}")


def _tail_of(output: str, cut: Cut) -> str:
    """The tail that an output is of; the cut's own for every name that no further tail has."""
    return next((tail for tail in cut.further_tails if output.startswith(f"{tail}/")), cut.tail_name)


def _dims(spec: TensorSpec) -> list[int]:
    return [-1 if d is None else d for d in spec.shape]
