"""The whole model on the server: for pictures that a device offloads, and for plain tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..runtime.bundle import Bundle
from ..runtime.errors import ChecksumError, FrameError, FrameTooLargeError, ShapeError
from ..runtime.frame import CodedTensor, Frame, Limits, Mode, payload_checksum
from ..runtime.halves import check_tensor
from ..runtime.images import decode_image, fit
from ..runtime.manifest import Half, Manifest, TensorSpec
from ..runtime.session import SessionOptions, graph_errors, open_session
from .engine import Array, Prepared


def has_whole(manifest: Manifest) -> bool:
    """Whether a bundle brings its whole model to the server."""
    return manifest.local is not None and Half.SERVER in manifest.files[manifest.local].halves


class WholeEngine:
    """The graph of the uncut model, its preprocessing in it."""

    def __init__(self, bundle: Bundle, limits: Limits, options: SessionOptions) -> None:
        """Load the graph.

        Args:
            bundle: one for which `has_whole` holds.
            limits: caps of the frames.
            options: how to run it.

        Raises:
            BundleError: ONNX Runtime refuses the graph.
        """
        manifest = bundle.manifest
        self._inputs = manifest.inputs
        self._outputs = [output.tensor.name for output in manifest.outputs]
        self._preprocess = manifest.preprocess
        self._batched = manifest.batched
        self._limits = limits
        self._session = open_session(bundle.file(str(manifest.local)), options)

    @property
    def providers(self) -> Sequence[str]:
        """The execution providers that run it, best first."""
        return [str(provider) for provider in self._session.get_providers()]

    def prepare(self, frame: Frame) -> Prepared:
        """The model's inputs out of a picture or out of plain tensors.

        Raises:
            FrameError: the bundle takes no pictures, or another number of tensors.
            ChecksumError: payloads other than those that were sent.
            SourceError: not a picture, or one of too many pixels.
            ShapeError: tensors that the model does not take.
            FrameTooLargeError: more elements than the cap.
        """
        if payload_checksum(frame.tensors) != frame.checksum:
            raise ChecksumError(f"the payloads of frame {frame.id} do not match their checksum; send the frame again")
        if frame.mode is Mode.OFFLOAD:
            return Prepared((self._picture(frame),), 0)
        if len(frame.tensors) != len(self._inputs):
            raise ShapeError(f"the model takes {len(self._inputs)} inputs; {len(frame.tensors)} came")
        pairs = zip(self._inputs, frame.tensors, strict=True)
        return Prepared(tuple(self._tensor(spec, coded) for spec, coded in pairs), 0)

    def run(self, batch: Sequence[Prepared]) -> list[dict[str, Array]]:
        """The model over the batch, or over one frame after the other where it takes no batch."""
        if not self._batched:
            return [self._run(frame.arrays) for frame in batch]
        results = self._run([np.stack(column) for column in zip(*(frame.arrays for frame in batch), strict=True)])
        return [{name: array[i] for name, array in results.items()} for i in range(len(batch))]

    def sample(self) -> Prepared | None:
        """An input to measure with; None where a shape is open."""
        if any(None in spec.shape for spec in self._inputs):
            return None
        shapes = [(tuple(d for d in spec.shape if d is not None), np.dtype(spec.dtype)) for spec in self._inputs]
        return Prepared(tuple(np.zeros(shape, dtype) for shape, dtype in shapes), 0)

    def _run(self, arrays: Sequence[Array]) -> dict[str, Array]:
        feed = {spec.name: array for spec, array in zip(self._inputs, arrays, strict=True)}
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, feed), strict=True))
        except graph_errors() as error:
            raise ShapeError(f"the model refuses these inputs: {error}") from error

    def _picture(self, frame: Frame) -> Array:
        if self._preprocess is None or len(frame.tensors) != 1:
            raise FrameError("an offloaded frame is one picture, for a model that was cut with its preprocessing")
        picture = decode_image(frame.tensors[0].payload, self._limits.max_elements // 3)
        return fit(picture, self._preprocess)

    def _tensor(self, spec: TensorSpec, coded: CodedTensor) -> Array:
        dtype = np.dtype(spec.dtype)
        if math.prod(coded.shape) > self._limits.max_elements:
            raise FrameTooLargeError(f"{math.prod(coded.shape)} elements; at most {self._limits.max_elements}")
        if len(coded.payload) != math.prod(coded.shape) * dtype.itemsize:
            raise ShapeError(f"{spec.name!r}: {len(coded.payload)} bytes are no {dtype.name} {list(coded.shape)}")
        array = np.frombuffer(coded.payload, dtype.newbyteorder("<")).reshape(coded.shape).astype(dtype, copy=False)
        check_tensor(spec, array)
        return array
