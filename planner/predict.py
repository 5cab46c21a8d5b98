"""What a frame will take at every operating point: expectations out of measured parts and a link's two figures.

latency = head + encode + (fixed + bytes × 8 / rate + round trip) + queue + decode + tail + final, each part measured
alone. The link's share is affine in bytes, as in Neurosurgeon (Kang et al., ASPLOS 2017, section 4.2); the device's own
policies reckon with the same (`runtime/cost.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Literal

from ..runtime.cost import PowerModel, frame_wire_bytes, transfer_s
from ..runtime.errors import UsageError
from ..runtime.point import LOCAL, Point
from .link import Link
from .pair import Pair
from .profile import Batch, Profile, Sizes, Timing
from .queueing import BatchCurve, solve

DropBy = Literal["held-out accuracy", "accuracy", "agreement"]
"""On the pictures held out in a bottleneck's training, on those of the profile, or 1 - agreement on those."""


@dataclass(frozen=True, slots=True)
class _Fidelity:
    agreement: float | None
    accuracy: float | None
    drop: float | None
    by: DropBy | None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a prediction is made under, beside the link."""

    device_scale: float = 1.0
    """Times that the device's computing takes as long as in its profile; 2 for a board half as fast."""
    server_scale: float = 1.0
    """The same of the server."""
    server_load: float = 0.0
    """Share of its time, 0…1, in which the server is busy with frames of others."""
    power: PowerModel = field(default_factory=PowerModel)
    """Of a device whose profile has no meter's figures."""

    def __post_init__(self) -> None:
        if min(self.device_scale, self.server_scale) <= 0 or not 0 <= self.server_load < 1:
            raise UsageError(f"scales are positive and a server's load is in 0…1 without 1, not {self}")


@dataclass(frozen=True, slots=True)
class Stages:
    """Milliseconds of one frame's parts, in their order; 0 for what does not take place."""

    head: float = 0.0
    """The head; the whole model for `local`."""
    encode: float = 0.0
    transport: float = 0.0
    """What both ends' own handling of a message takes."""
    send: float = 0.0
    """Until the last byte has left at the link's rate."""
    trip: float = 0.0
    """Round trip, half of both directions' jitter, expected stalls of lost segments, and the answer's bytes."""
    queue: float = 0.0
    decode: float = 0.0
    tail: float = 0.0
    """The tail; the whole model for `offload`."""
    final: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return math.fsum(getattr(self, f.name) for f in fields(self))

    @property
    def link(self) -> float:
        """What `narrows run` calls link: all between sending and answer that is not the server's."""
        return self.transport + self.send + self.trip

    @property
    def device(self) -> float:
        """What the device computes."""
        return self.head + self.encode + self.final


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is expected of one operating point."""

    point: Point
    stages: Stages
    """At the median of every part."""
    latency_ms: float
    """From the input to the answer: the sum of the stages."""
    high_ms: float
    """The same with every stage at its 95th percentile and the payload at its 99th: what few frames exceed."""
    throughput_fps: float
    """Frames a second of one device with the stages overlapping: that of the slowest."""
    wire_bytes: float
    """In the TCP stream, of a frame of mean size."""
    energy_j: float
    """On the device, of one frame; `energy_measured` says by what."""
    energy_measured: bool
    """The powers are a meter's; otherwise a model's."""
    agreement: float | None
    """Share of frames with the whole model's best class; None where it is unknown."""
    accuracy: float | None
    """Share of right answers; None where there were no labels."""
    accuracy_drop: float | None
    """Points of per cent that it costs beside the whole model; None where nobody knows."""
    drop_by: DropBy | None
    """What the drop is known by; one by agreement is the most that it can be."""
    memory_bytes: int | None
    """That the device's graph takes."""
    disk_bytes: int
    """That the device's files take."""


def predict(
    device: Profile, server: Profile | None, link: Link, conditions: Conditions | None = None
) -> tuple[Prediction, ...]:
    """Every operating point that can be taken, with what is expected of it.

    Args:
        device: heads, coder, whole model and encodings on the device.
        server: tails and whole model on the server; the device's own profile stands in for it where None.
        link: between them. Over one that lets nothing pass, no point but `local` is there.
        conditions: scales, load and powers; those of the profiles where None.

    Returns:
        For each measured cut that both have and each of its qualities a `split`, for each encoding an `offload`, and
        `local` last where the device's profile has the whole model.

    Raises:
        ProfileError: profiles of two models.
    """
    pair = Pair.of(device, server or device)
    predictor = _Predictor(pair, link, conditions or Conditions())
    remote = (*predictor.splits(), *predictor.offloads()) if link.passes else ()
    return (*remote, *predictor.local())


@dataclass(frozen=True, slots=True)
class _Predictor:
    pair: Pair
    link: Link
    conditions: Conditions

    def splits(self) -> Iterator[Prediction]:
        """Every quality of every cut that both ends have."""
        for cut in self.pair.cuts():
            for number, quality in enumerate(cut.qualities):
                yield self._sent(
                    Point("split", cut.name, number),
                    _Parts(cut.head, quality.encode, quality.decode, cut.tail, cut.final),
                    quality.payload,
                    batches=cut.tail_batches,
                    fidelity=self._fidelity(quality.agreement, quality.accuracy, cut.held_out_accuracy),
                    memory_bytes=cut.peak_memory_bytes,
                    disk_bytes=cut.head_bytes,
                )

    def offloads(self) -> Iterator[Prediction]:
        """Every encoding, where the server has measured the whole model."""
        whole = self.pair.server_whole
        if whole.run is None:
            return
        for encoding in self.pair.encodings():
            yield self._sent(
                Point("offload", quality=encoding.quality, format=encoding.format),
                _Parts(None, encoding.encode, encoding.decode, whole.run, None),
                encoding.payload,
                batches=whole.batches,
                fidelity=self._fidelity(encoding.agreement, encoding.accuracy),
                memory_bytes=None,
                disk_bytes=0,
            )

    def local(self) -> Iterator[Prediction]:
        """The whole model on the device, where that was measured."""
        whole, scale = self.pair.device.whole, self.conditions.device_scale
        if whole.run is None:
            return
        took_ms = whole.run.ms * scale
        power, measured = self._power()
        yield Prediction(
            LOCAL,
            Stages(head=took_ms),
            latency_ms=took_ms,
            high_ms=whole.run.p95_ms * scale,
            throughput_fps=1000 / took_ms if took_ms else math.inf,
            wire_bytes=0.0,
            energy_j=power.energy_j(took_ms / 1000),
            energy_measured=measured,
            agreement=1.0,
            accuracy=whole.accuracy,
            accuracy_drop=0.0,
            drop_by="agreement" if whole.accuracy is None else "accuracy",
            memory_bytes=whole.peak_memory_bytes,
            disk_bytes=whole.file_bytes,
        )

    def _sent(
        self,
        point: Point,
        parts: _Parts,
        payload: Sizes,
        *,
        batches: Sequence[Batch],
        fidelity: _Fidelity,
        memory_bytes: int | None,
        disk_bytes: int,
    ) -> Prediction:
        queue = queue_ms(batches, self.conditions) if self.conditions.server_load else 0.0
        usual = self._stages(parts, payload.p50, queue, lambda timing: timing.ms)
        high = self._stages(parts, payload.p99, queue, lambda timing: timing.p95_ms)
        # The mean of a uniform jitter is in `usual`; its largest value is twice that.
        high_ms = high.total + self.link.jitter_s * 1000
        wire = frame_wire_bytes(payload.mean)
        power, measured = self._power()
        energy_j = power.energy_j(usual.device / 1000, (usual.total - usual.device) / 1000, self.link.up_s(wire))
        return Prediction(
            point,
            usual,
            latency_ms=usual.total,
            high_ms=high_ms,
            throughput_fps=self._throughput(usual, wire, batches),
            wire_bytes=wire,
            energy_j=energy_j,
            energy_measured=measured,
            agreement=fidelity.agreement,
            accuracy=fidelity.accuracy,
            accuracy_drop=fidelity.drop,
            drop_by=fidelity.by,
            memory_bytes=memory_bytes,
            disk_bytes=disk_bytes,
        )

    def _stages(self, parts: _Parts, payload_bytes: float, queue: float, pick: Callable[[Timing], float]) -> Stages:
        link, transport = self.link, self.pair.transport
        device, server = self.conditions.device_scale, self.conditions.server_scale
        wire = frame_wire_bytes(payload_bytes)
        trip_s = link.rtt_s + link.jitter_s + link.down_s(self.pair.reply_bytes) + link.stall_s(wire)

        def took(timing: Timing | None, scale: float) -> float:
            return 0.0 if timing is None else pick(timing) * scale

        return Stages(
            head=took(parts.head, device),
            encode=took(parts.encode, device),
            transport=1000 * transfer_s(wire, transport.fixed_ms / 1000, transport.byte_us * 1e-6),
            send=1000 * link.up_s(wire),
            trip=1000 * trip_s,
            queue=queue,
            decode=took(parts.decode, server),
            tail=took(parts.tail, server),
            final=took(parts.final, device),
        )

    def _throughput(self, stages: Stages, wire: float, batches: Sequence[Batch]) -> float:
        """Stages overlap, each with one frame at a time: the rate is the slowest's. The server's is that of its best
        batch, less what others take of it."""
        conditions = self.conditions
        tail_ms = min((b.ms / b.frames for b in batches), default=stages.tail / conditions.server_scale)
        server_ms = max(stages.decode, tail_ms * conditions.server_scale) / (1 - conditions.server_load)
        slowest = max(stages.head + stages.final, stages.encode, 1000 * self.link.up_s(wire), server_ms)
        return 1000 / slowest if slowest else math.inf

    def _fidelity(self, agreement: float | None, accuracy: float | None, held_out: float | None = None) -> _Fidelity:
        """By accuracy where that and the whole model's on the same pictures are known, else by agreement."""
        whole = self.pair.whole_accuracy if held_out is None else held_out
        if accuracy is not None and whole is not None:
            by: DropBy = "accuracy" if held_out is None else "held-out accuracy"
            return _Fidelity(agreement, accuracy, 100 * (whole - accuracy), by)
        if agreement is not None:
            return _Fidelity(agreement, accuracy, 100 * (1 - agreement), "agreement")
        return _Fidelity(None, accuracy, None, None)

    def _power(self) -> tuple[PowerModel, bool]:
        power, guess = self.pair.device.power, self.conditions.power
        if power is None:
            return guess, False
        # No meter here tells the radio from the rest.
        return PowerModel(power.compute_w, power.idle_w, guess.radio_w), True


@dataclass(frozen=True, slots=True)
class _Parts:
    """What is timed of one point."""

    head: Timing | None
    encode: Timing | None
    decode: Timing | None
    tail: Timing | None
    final: Timing | None


def queue_ms(batches: Sequence[Batch], conditions: Conditions) -> float:
    """Mean wait of a frame at a server that is busy with others for `server_load` of its time."""
    if not batches or not conditions.server_load:
        return 0.0
    # A server twice as slow that is as busy lets everybody wait twice as long.
    return conditions.server_scale * _wait_ms(tuple(batches), conditions.server_load)


@lru_cache(maxsize=256)
def _wait_ms(batches: tuple[Batch, ...], load: float) -> float:
    curve = BatchCurve.of(batches)
    return 1000 * solve(curve, load * curve.most_fps).mean_wait_s
