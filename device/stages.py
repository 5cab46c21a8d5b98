"""What is done with a frame on the device, one function a stage, and what is made of the server's reply."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..runtime.answer import Array, Reply, TopClass, Wanted, best_classes, classifier
from ..runtime.bundle import Bundle
from ..runtime.errors import InternalError, NarrowsError, ShapeError
from ..runtime.frame import FrameCodec
from ..runtime.halves import Features, Head, check_tensor
from ..runtime.session import SessionOptions, graph_errors
from .outcome import Outcome, Prediction
from .pipeline import Journey
from .uplink import Parcel, Uplink


@dataclass(frozen=True, slots=True)
class Split:
    """The stages of a frame that is split at one cut: `head`, then `encode`, which hands it to the uplink."""

    bundle: Bundle
    cut_index: int
    head_graph: Head
    codec: FrameCodec
    uplink: Uplink
    wanted: Wanted
    timeout_s: float

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        cut_name: str | None,
        uplink: Uplink,
        *,
        wanted: Wanted,
        timeout_s: float,
        session: SessionOptions,
    ) -> Split:
        """Load the head of a cut (the first where none is named) and try it on the golden frame.

        Raises:
            QualityError: no such cut.
            BundleError: ONNX Runtime refuses the head, or this machine does not reproduce it.
        """
        index, cut = bundle.manifest.cut(cut_name)
        return cls(bundle, index, Head(bundle, cut, session), FrameCodec(bundle, index), uplink, wanted, timeout_s)

    def head(self, journey: Journey) -> None:
        """Run the head.

        Raises:
            NarrowsError: the input's own error, or a shape or a quality that the head does not take.
        """
        if journey.input.error is not None:
            raise journey.input.error
        specs = self.bundle.manifest.inputs
        arrays = dict(zip((spec.name for spec in specs), journey.input.arrays, strict=True))
        with _timed(journey, "head"):
            try:
                journey.features = self.head_graph.run(
                    [arrays[spec.name] for spec in self.head_graph.inputs], journey.point.quality
                )
            except graph_errors() as error:
                raise ShapeError(f"the head refuses this input: {error}") from error

    def encode(self, journey: Journey) -> None:
        """Code the symbols and hand the frame over.

        Raises:
            FrameTooLargeError: the payloads are more than any server takes.
        """
        features = journey.features
        if features is None:
            raise InternalError("a frame came to the coder without its features")
        quality = journey.point.quality
        with _timed(journey, "encode"):
            frame = self.codec.pack(journey.index, features.symbols, quality, self.uplink.coder)
        journey.payload_bytes = frame.payload_bytes
        parcel = Parcel(
            frame=frame,
            expires=journey.began + self.timeout_s,
            pack=lambda coder: self.codec.pack(journey.index, features.symbols, quality, coder),
            done=lambda parcel, result: self._finish(journey, features, parcel, result),
        )
        self.uplink.send(parcel)

    def _finish(self, journey: Journey, features: Features, parcel: Parcel, result: Reply | NarrowsError) -> None:
        """End the frame with what came of it."""
        journey.payload_bytes = parcel.frame.payload_bytes
        if isinstance(result, Reply):
            timing = result.timing
            on_server = {"queue": timing.queue_ms, "decode": timing.decode_ms, "tail": timing.tail_ms}
            round_trip_ms = (time.monotonic() - parcel.sent) * 1000
            journey.ms |= {"link": max(0.0, round_trip_ms - sum(on_server.values())), **on_server}
        try:
            if not isinstance(result, Reply):
                raise result
            if result.error is not None:
                raise result.error
            outputs, top = self._answer(features, result)
        except NarrowsError as error:
            journey.fail(error, attempts=parcel.attempts, wire_bytes=parcel.wire_bytes)
            return
        journey.end(
            Outcome(
                id=journey.index,
                source=journey.input.source,
                point=journey.point,
                outputs=outputs,
                top=top,
                provenance="server",
                attempts=parcel.attempts,
                payload_bytes=journey.payload_bytes,
                wire_bytes=parcel.wire_bytes,
            )
        )

    def _answer(self, features: Features, reply: Reply) -> tuple[dict[str, Array], tuple[Prediction, ...]]:
        """The model's outputs in its own order, as far as they were asked for, and the best classes.

        Raises:
            ShapeError: the server's tensors are not the bundle's.
        """
        manifest = self.bundle.manifest
        held = {**features.outputs, **reply.outputs}
        outputs = {}
        for output in manifest.outputs:
            name = output.tensor.name
            if name in held:
                check_tensor(output.tensor, held[name])
                outputs[name] = held[name]
        labelled = classifier(manifest)
        if labelled is None or reply.top:
            best = reply.top
        elif labelled.tensor.name in outputs:
            best = best_classes(outputs[labelled.tensor.name], labelled.kind, self.wanted.top)
        else:
            best = ()
        if len(outputs) < len(manifest.outputs) and not best:
            missing = [o.tensor.name for o in manifest.outputs if o.tensor.name not in outputs]
            raise ShapeError(f"the server's answer lacks {', '.join(missing)}")
        return outputs, tuple(self._named(one) for one in best)

    def _named(self, best: TopClass) -> Prediction:
        labels = self.bundle.manifest.labels
        return Prediction(best.index, labels[best.index] if best.index < len(labels) else None, best.score)


@contextmanager
def _timed(journey: Journey, stage: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        journey.ms[stage] = (time.monotonic() - began) * 1000
