"""What is done with a frame on the device, and what is made of the server's reply."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ..runtime.answer import Array, Reply, TailAnswer, Wanted
from ..runtime.bundle import Bundle
from ..runtime.early_exit import EarlyAnswer, EarlyExit
from ..runtime.errors import (
    BundleMismatchError,
    DrainingError,
    FrameTooLargeError,
    InternalError,
    LinkError,
    NarrowsError,
    ShapeError,
)
from ..runtime.frame import Frame, FrameCodec
from ..runtime.halves import Features, Final, Head
from ..runtime.point import LOCAL, Point
from ..runtime.rate import step_down, within_cap
from ..runtime.session import SessionOptions, graph_errors
from .fallback import Fallback
from .inputs import Input
from .local import LocalModel
from .offload import picture_frame
from .options import DeviceOptions
from .outcome import Answer, Provenance
from .pipeline import Journey
from .planner import Planner
from .policies import Choice
from .predictions import Reader, tail_readers
from .uplink import Parcel, Uplink

log = logging.getLogger(__name__)

_FORGIVEN = (LinkError, DrainingError, InternalError, BundleMismatchError, FrameTooLargeError)
"""What an answer on the device makes up for; any other error is the frame's own."""
_LATE_S = 0.02
"""How late a fallback may be begun without being late: a thread's waking up on a busy board."""


@dataclass(frozen=True, slots=True)
class CutParts:
    """What one cut needs on the device."""

    index: int
    head: Head
    codec: FrameCodec
    readers: Mapping[str, Reader]
    """Of each tail's answers."""
    final: Final | None = None
    """Of a three-way cut: what makes the model's outputs of the server's answer."""
    exit: EarlyExit | None = None
    """What answers from the head's features alone."""

    @classmethod
    def load(
        cls, bundle: Bundle, index: int, options: SessionOptions, wanted: Wanted, *, exits: bool = False
    ) -> CutParts:
        """Load the device's graphs of a cut, and try them on the golden frame.

        Args:
            bundle: the device's half at least.
            index: of the cut.
            options: how to run the graphs.
            exits: load the early exit too, where there is one.

        Raises:
            BundleError: ONNX Runtime refuses a graph.
            GoldenError: this machine does not reproduce it.
        """
        cut = bundle.manifest.cuts[index]
        final = Final(bundle, cut, options) if cut.final is not None else None
        early = EarlyExit(bundle, cut, options) if exits and cut.exit is not None else None
        readers = tail_readers(bundle.manifest, cut, wanted)
        return cls(index, Head(bundle, cut, options), FrameCodec(bundle, index), readers, final, early)

    def read(self, features: Features, reply: Reply, quality: int, tails: Sequence[str]) -> list[Answer]:
        """What each tail says, in the order in which they were asked for.

        Raises:
            ShapeError: the answer is not one that this cut's server gives.
        """
        first, *others = tails or (self.head.cut.tail_name,)
        said = {first: TailAnswer(reply.outputs, reply.top), **{name: reply.further.get(name) for name in others}}
        return [self._read(name, features, answer, quality) for name, answer in said.items()]

    def _read(self, tail: str, features: Features, said: TailAnswer | None, quality: int) -> Answer:
        if said is None:
            raise ShapeError(f"the answer lacks that of tail {tail!r}")
        own = tail == self.head.cut.tail_name
        held = self._finish(features, said.outputs, quality) if own else said.outputs
        return self.readers[tail].read(held, said.top)

    def _finish(self, features: Features, answer: Mapping[str, Array], quality: int) -> Mapping[str, Array]:
        """All of the model's outputs that are known once the server has answered.

        Raises:
            ShapeError: the answer is not one that this cut's server gives.
        """
        if self.final is None:
            return {**features.outputs, **answer}
        return self.final.run(features, answer, quality)


@dataclass(slots=True)
class Stages:
    """The stages of a frame: `compute`, then `encode`, which hands it to the uplink."""

    halves: Mapping[str, CutParts]
    """By the cut's name."""
    reader: Reader
    """Of the whole model's answers."""
    inputs: Sequence[str]
    """Names of the model's inputs, in order."""
    uplink: Uplink
    planner: Planner
    options: DeviceOptions
    local: LocalModel | None = None
    offload: Point | None = None
    """Where the policy may send the picture itself."""
    fallback: Fallback | None = field(init=False, default=None)
    _early_cut: str | None = field(init=False, default=None)
    """The cut whose exit answers in a server's place, where one may."""

    def __post_init__(self) -> None:
        for name, parts in self.halves.items():
            if parts.exit is not None:
                self.planner.exit_took(name, parts.exit.first_s)
                if self.options.may_rescue("exit"):
                    self._early_cut = self._early_cut or name
        if self.local is not None or self._early_cut is not None:
            self.fallback = Fallback(self._rescue, lambda: self._rescue_s(self._prefers_whole()))

    def compute(self, journey: Journey) -> None:
        """Choose the frame's point, and run the head or the whole model.

        Raises:
            NarrowsError: the input's own error, or a shape that the graph does not take.
        """
        if journey.input.error is not None:
            raise journey.input.error
        choice = self._choose(journey)
        journey.point = choice.point
        if choice.point.mode == "split":
            journey.features = self._head(journey, choice.point)
            self._exit_if_sure(journey, choice.point)
        elif choice.point.mode == "exit":
            self._answer_early(journey)
        elif choice.point.mode == "local":
            self._answer_locally(journey)
        if choice.probe is not None:
            self._probe(journey, choice.probe)

    def encode(self, journey: Journey) -> None:
        """Code the symbols and hand the frame over.

        Raises:
            FrameTooLargeError: the payloads are over the cap even at the lowest quality, and nothing here answers
                instead.
        """
        try:
            journey.parcel = self._within_cap(journey)
        except FrameTooLargeError:
            if self._rescued(journey):
                return
            raise
        if self.fallback is not None and journey.deadline is not None:
            self.fallback.guard(journey, journey.deadline)
        self.uplink.send(journey.parcel)

    def warm_up(self, frame: Input) -> None:
        """Run every graph and every kind of coding once, and tell the planner how long it took.

        Raises:
            NarrowsError: the input's own error, or a shape that the graph does not take.
        """
        if frame.error is not None:
            raise frame.error
        journey = Journey(0, frame, self, LOCAL, time.monotonic(), {}, lambda _journey, _outcome: None)
        for name, parts in self.halves.items():
            point = Point("split", name, 0)
            features = self._head(journey, point)
            self._parcel(journey, point, features)
            if parts.exit is not None:
                self._ask_exit(journey, parts.exit, features, point)
        if self.offload is not None:
            self._picture(journey, self.offload)
        if self.local is not None:
            self._answer_locally(journey)

    def _choose(self, journey: Journey) -> Choice:
        deadline_s = None if journey.deadline is None else journey.deadline - journey.began
        down_s, oldest_s = self.uplink.down_s(), self.uplink.oldest_s()
        return self.planner.choose(journey.point, deadline_s, down_s, oldest_s, self._cap_bytes())

    def _cap_bytes(self) -> int | None:
        """Most bytes of a frame's payloads: the operator's cap or the server's, whichever is less."""
        caps = [cap for cap in (self.options.max_payload_bytes, self.uplink.max_frame_bytes) if cap is not None]
        return min(caps, default=None)

    def _within_cap(self, journey: Journey) -> Parcel:
        """The frame as it is sent: at a lower quality than was chosen where its payloads are over the cap.

        Raises:
            FrameTooLargeError: they are at any quality.
        """
        while True:
            cap_bytes, point = self._cap_bytes(), journey.point
            if point.mode == "offload":
                parcel = self._picture(journey, point)
                within_cap(parcel.frame.payload_bytes, cap_bytes)
                return parcel
            parcel = self._parcel(journey, point, journey.features)
            payload_bytes = parcel.frame.payload_bytes
            if cap_bytes is None or payload_bytes <= cap_bytes or point.cut is None or point.quality is None:
                return parcel
            lower = step_down(point.quality, payload_bytes, cap_bytes, self.planner.payload_bytes(point.cut))
            if lower is None and point.quality > 0:
                lower = 0  # an expectation alone refuses no frame
            if lower is None:
                within_cap(payload_bytes, cap_bytes)
            journey.point = replace(point, quality=lower)
            journey.features = self._head(journey, journey.point)

    def _head(self, journey: Journey, point: Point) -> Features:
        assert point.cut is not None
        assert point.quality is not None
        head = self.halves[point.cut].head
        arrays = dict(zip(self.inputs, journey.input.arrays, strict=True))
        with _timed(journey, "head") as timing:
            try:
                features = head.run([arrays[spec.name] for spec in head.inputs], point.quality)
            except graph_errors() as error:
                raise ShapeError(f"the head refuses this input: {error}") from error
        self.planner.head_took(point.cut, timing.duration_s)
        return features

    def _picture(self, journey: Journey, point: Point) -> Parcel:
        assert point.quality is not None
        with _timed(journey, "encode") as timing:
            frame = picture_frame(journey.index, journey.input.arrays[0], point.quality, point.format)
        self.planner.coder_took(point, timing.duration_s, frame.payload_bytes)
        return self._for_uplink(journey, point, None, frame, lambda _coder: frame)

    def _parcel(self, journey: Journey, point: Point, features: Features | None) -> Parcel:
        if features is None or point.cut is None or point.quality is None:
            raise InternalError("a frame came to the coder without its features")
        codec, quality = self.halves[point.cut].codec, point.quality
        with _timed(journey, "encode") as timing:
            frame = codec.pack(journey.index, features.symbols, quality, self.uplink.coder)
        self.planner.coder_took(point, timing.duration_s, frame.payload_bytes)
        return self._for_uplink(
            journey,
            point,
            features,
            frame,
            lambda coder: codec.pack(journey.index, features.symbols, quality, coder),
        )

    def _for_uplink(
        self,
        journey: Journey,
        point: Point,
        features: Features | None,
        frame: Frame,
        pack: Callable[[str], Frame],
    ) -> Parcel:
        expires = journey.began + self.options.timeout_s
        if (trace := journey.trace) is not None:
            frame, plain = replace(frame, trace=trace.context), pack
            pack = lambda coder: replace(plain(coder), trace=trace.context)  # noqa: E731
        return Parcel(
            frame=frame,
            expires=expires if journey.deadline is None else min(expires, journey.deadline),
            pack=pack,
            done=lambda parcel, result: self._finish(journey, point, features, parcel, result),
        )

    def _probe(self, journey: Journey, point: Point) -> None:
        """Send a frame that is answered already, to hear of the link.

        It has a deadline of its own: the frame's is all but over where the device itself is slow, and then no answer to
        a probe would ever be in time.
        """
        now = time.monotonic()
        deadline = None if journey.deadline is None else now + journey.deadline - journey.began
        probe = Journey(
            journey.index, journey.input, self, point, now, {}, lambda _journey, _outcome: None, deadline, _ended=True
        )
        try:
            self.uplink.send(self._parcel(probe, point, self._head(probe, point)))
        except NarrowsError as error:
            log.info("no probe: %s", error)

    # What comes back. These run in the uplink's threads.

    def _finish(
        self, journey: Journey, point: Point, features: Features | None, parcel: Parcel, result: Reply | NarrowsError
    ) -> None:
        """End the frame with what came of it."""
        error = result if isinstance(result, NarrowsError) else result.error
        if isinstance(result, Reply) and error is None:
            self._measure(journey, point, parcel, result)
            try:
                if not journey.ended:
                    self._end(journey, point, self._read(journey, point, features, result), "server")
            except NarrowsError as damage:
                error = damage
        if error is not None and isinstance(error, _FORGIVEN):
            if parcel.attempts:
                self.planner.unanswered(parcel.wire_bytes, time.monotonic() - parcel.sent)
            if self._rescued(journey):
                return
        if error is not None:
            journey.fail(error)
        if self.fallback is not None:
            self.fallback.release(journey)

    def _rescued(self, journey: Journey) -> bool:
        """Whether the whole model on the device sees to it that the frame ends."""
        return journey.ended or (self.fallback is not None and self.fallback.guard(journey, time.monotonic()))

    def _read(self, journey: Journey, point: Point, features: Features | None, reply: Reply) -> list[Answer]:
        """What device and server say together: the model, or each tail that was asked for."""
        if features is None or point.cut is None or point.quality is None:
            return [self.reader.read(reply.outputs, reply.top)]
        parts, tails = self.halves[point.cut], self.reader.wanted.tails
        if parts.final is None:
            return parts.read(features, reply, point.quality, tails)
        with _timed(journey, "final"):
            return parts.read(features, reply, point.quality, tails)

    def _end(self, journey: Journey, point: Point, answers: Sequence[Answer], provenance: Provenance) -> None:
        first, named = answers[0], dict(zip(self.reader.wanted.tails, answers, strict=False))
        facts = {"outputs": first.outputs, "top": first.top, "answers": named, "provenance": provenance}
        journey.end(journey.outcome(point, **facts))

    def _measure(self, journey: Journey, point: Point, parcel: Parcel, reply: Reply) -> None:
        now, timing = time.monotonic(), reply.timing
        on_server = {"queue": timing.queue_ms, "decode": timing.decode_ms, "tail": timing.tail_ms}
        server_ms = sum(on_server.values())
        link_ms = max(0.0, (now - parcel.sent) * 1000 - server_ms)
        if not journey.ended:
            journey.ms |= {"link": link_ms, **on_server}
        in_time = journey.deadline is None or now <= journey.deadline
        self.planner.answered(point.cut, parcel.wire_bytes, link_ms / 1000, server_ms / 1000, in_time=in_time)

    # Answers on the device.

    def _exit_if_sure(self, journey: Journey, point: Point) -> None:
        """End the frame here where the early exit is asked first and sure enough."""
        least = self.options.exit_confidence
        if least is None or point.cut is None or journey.features is None:
            return
        if (early := self.halves[point.cut].exit) is None:
            return
        journey.early = self._ask_exit(journey, early, journey.features, point, least)
        if journey.early.confidence >= least:
            self._end_early(journey, journey.early, point)

    def _ask_exit(
        self, journey: Journey, early: EarlyExit, features: Features, point: Point, least: float | None = None
    ) -> EarlyAnswer:
        assert point.cut is not None
        assert point.quality is not None
        with _timed(journey, "exit") as timing:
            answer = early.run(features, point.quality)
        sent = None if least is None else answer.confidence < least
        self.planner.exit_took(point.cut, timing.duration_s, sent=sent)
        return answer

    def _answer_early(self, journey: Journey) -> None:
        """Answer by the exit of the frame's own cut, on the features that are there; otherwise by the first exit."""
        point, features = journey.point, journey.features
        if features is None or point.cut is None or self.halves[point.cut].exit is None:
            point = self._early_point(point)
            features = self._head(journey, point)
        assert point.cut is not None
        early = self.halves[point.cut].exit
        assert early is not None
        if journey.early is None:
            journey.early = self._ask_exit(journey, early, features, point)
        self._end_early(journey, journey.early, point)

    def _early_point(self, point: Point) -> Point:
        if point.mode == "exit":
            return point
        assert self._early_cut is not None
        return Point("exit", self._early_cut, len(self.halves[self._early_cut].head.cut.qualities) - 1)

    def _end_early(self, journey: Journey, answer: EarlyAnswer, point: Point) -> None:
        made_by = Point("exit", point.cut, point.quality)
        self._end(journey, made_by, [self.reader.read(answer.outputs)], "exit")

    def _answer_locally(self, journey: Journey) -> None:
        assert self.local is not None
        with _timed(journey, "local") as timing:
            held = self.local.run(journey.input.arrays)
        self.planner.local_took(timing.duration_s)
        self._end(journey, LOCAL, [self.reader.read(held)], "local")

    def _rescue(self, journey: Journey) -> None:
        """What the fallback does with a frame whose answer has not come."""
        left_s = None if journey.deadline is None else journey.deadline - time.monotonic()
        whole = self._prefers_whole()
        if whole and self._early_cut is not None and left_s is not None:
            # Others may have been before it, and the deadline is what counts.
            whole = self._rescue_s(True) <= left_s + _LATE_S
        journey.do(self._answer_locally if whole else self._answer_early)

    def _prefers_whole(self) -> bool:
        """Whether the whole model is what answers in a server's place."""
        deadline_ms = self.options.deadline_ms
        if self.local is None or self._early_cut is None or deadline_ms is None:
            return self.local is not None
        return self._rescue_s(True) <= deadline_ms / 1000 / 2

    def _rescue_s(self, whole: bool) -> float:
        return self.planner.rescue_s(self._early_cut, whole=whole)


@dataclass(slots=True)
class _Timing:
    duration_s: float = 0.0


@contextmanager
def _timed(journey: Journey, stage: str) -> Iterator[_Timing]:
    timing, began = _Timing(), time.monotonic()
    try:
        yield timing
    finally:
        timing.duration_s = time.monotonic() - began
        journey.ms[stage] = timing.duration_s * 1000
