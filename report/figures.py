"""The numbers behind the pictures: of every operating point its parts at scale 1, so that a page can put them together.

`formula.js` does with them what `planner/predict.py` and `planner/choose.py` do; tests hold the two against each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..planner.choose import Constraints, Objective, best_of
from ..planner.link import Link
from ..planner.pair import Pair
from ..planner.predict import Conditions, predict, queue_ms
from ..planner.profile import Batch, Profile, Sizes, Timing
from ..runtime.cost import frame_wire_bytes
from ..runtime.point import LOCAL, Point

LOADS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)
"""Shares of the server's time that others take, at which the queue is solved; the page's slider has these stops."""


@dataclass(frozen=True, slots=True)
class PointParts:
    """One operating point, part by part. Milliseconds at scale 1, medians; bytes in the TCP stream."""

    mode: str
    cut: str | None
    quality: int | None
    format: str
    label: str
    group: str
    """What it shares with its neighbours: the cut, or the way."""
    head: float
    encode: float
    decode: float
    tail: float
    final: float
    wire_p50: float
    wire_mean: float
    batch_ms: float
    """A frame's share of the tail's best batch."""
    queue: tuple[float, ...]
    """Mean wait at each of `LOADS`."""
    agreement: float | None
    accuracy: float | None
    drop: float | None
    drop_by: str | None
    memory_bytes: float | None
    disk_bytes: float


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the graph at which it can be cut."""

    name: str
    head_ms: float
    raw_bytes: int
    symbols: int
    """Bytes at 8 bits a symbol, before coding."""
    measured: bool


@dataclass(frozen=True, slots=True)
class Situation:
    """What a report is made for: two profiles, a link, bounds."""

    device: Profile
    server: Profile
    link: Link
    constraints: Constraints
    objective: Objective = "latency"
    conditions: Conditions = field(default_factory=Conditions)


def figures(situation: Situation) -> dict[str, Any]:
    """All numbers of the page, as values that JSON has.

    Raises:
        ProfileError: profiles of two models.
        NothingPlannedError: they have nothing in common that could be done with a frame.
    """
    device, server, link = situation.device, situation.server, situation.link
    # Says why, where nothing can be planned at all; where the link is to blame, the sliders can mend that.
    best_of(predict(device, server, Link(math.inf)))
    pair = Pair.of(device, server)
    transport, power, guess = pair.transport, device.power, situation.conditions.power
    machines = [device.machine.name] if device is server else [device.machine.name, server.machine.name]
    return {
        "model": device.model,
        "digest": device.digest,
        "machines": machines,
        "frames": max(device.frames, server.frames),
        "notes": list(dict.fromkeys((*device.notes, *server.notes))),
        "measured_accuracy": pair.whole_accuracy is not None,
        "whole_accuracy": pair.whole_accuracy,
        "loads": LOADS,
        "points": [asdict(point) for point in points(situation)],
        "positions": [asdict(position) for position in positions(device)],
        "transport": {"fixed_ms": transport.fixed_ms, "byte_us": transport.byte_us, "how": transport.how},
        "reply_bytes": pair.reply_bytes,
        "power": {
            "compute_w": power.compute_w if power else guess.compute_w,
            "wait_w": power.idle_w if power else guess.wait_w,
            "radio_w": guess.radio_w,
            "measured": power is not None,
        },
        "link": {
            "bps": finite(link.bps),
            "rtt_s": link.rtt_s,
            "down_bps": None if link.down_bps is None else finite(link.down_bps),
            "jitter_s": link.jitter_s,
            "loss": link.loss,
        },
        "conditions": {
            "device": situation.conditions.device_scale,
            "server": situation.conditions.server_scale,
            "load": situation.conditions.server_load,
        },
        "constraints": asdict(situation.constraints),
        "objective": situation.objective,
    }


def finite(rate_bps: float) -> float:
    """A rate that JSON has and a slider can stand at: 100 Gbit/s for no limit, 1 kbit/s where nothing passes."""
    return min(max(rate_bps, 1e3), 1e11)


def group(point: Point) -> str:
    """What a point shares with its neighbours: its cut, or its way."""
    if point.mode == "split":
        return point.cut or ""
    return str(replace(point, quality=None)).removesuffix(" None") if point.mode == "offload" else str(point)


def points(situation: Situation) -> Iterator[PointParts]:
    """Every operating point, in the planner's order: splits, offloads, local."""
    pair = Pair.of(situation.device, situation.server)
    # Fidelity is the planner's to say; over an endless link every point is there.
    known = {one.point: one for one in predict(pair.device, pair.server, Link(math.inf))}
    for cut in pair.cuts():
        queue = _queue(cut.tail_batches)
        for number, quality in enumerate(cut.qualities):
            point = Point("split", cut.name, number)
            timings = (cut.head, quality.encode, quality.decode, cut.tail, cut.final)
            yield _parts(point, known[point], timings, quality.payload, cut.tail_batches, queue)
    queue = _queue(pair.server_whole.batches)
    for encoding in pair.encodings():
        point = Point("offload", quality=encoding.quality, format=encoding.format)
        if point in known:
            timings = (None, encoding.encode, encoding.decode, pair.server_whole.run, None)
            yield _parts(point, known[point], timings, encoding.payload, pair.server_whole.batches, queue)
    if LOCAL in known:
        yield _parts(
            LOCAL, known[LOCAL], (pair.device.whole.run, None, None, None, None), None, (), (0.0,) * len(LOADS)
        )


def positions(device: Profile) -> list[Position]:
    """Where the graph can be cut, by the work before it: estimates, and the cuts that were measured."""
    measured = {cut.name for cut in device.cuts}
    return [
        Position(one.name, one.head_ms, one.raw_bytes, one.symbols, one.name in measured)
        for one in sorted(device.estimates, key=lambda one: one.head_ms)
    ]


def _parts(
    point: Point,
    known: Any,
    timings: Sequence[Timing | None],
    payload: Sizes | None,
    batches: Sequence[Batch],
    queue: tuple[float, ...],
) -> PointParts:
    head, encode, decode, tail, final = (0.0 if timing is None else timing.ms for timing in timings)
    return PointParts(
        mode=point.mode,
        cut=point.cut,
        quality=point.quality,
        format=point.format,
        label=str(point),
        group=group(point),
        head=head,
        encode=encode,
        decode=decode,
        tail=tail,
        final=final,
        wire_p50=0.0 if payload is None else frame_wire_bytes(payload.p50),
        wire_mean=0.0 if payload is None else frame_wire_bytes(payload.mean),
        batch_ms=min((batch.ms / batch.frames for batch in batches), default=tail),
        queue=queue,
        agreement=known.agreement,
        accuracy=known.accuracy,
        drop=known.accuracy_drop,
        drop_by=known.drop_by,
        memory_bytes=known.memory_bytes,
        disk_bytes=known.disk_bytes,
    )


def _queue(batches: Sequence[Batch]) -> tuple[float, ...]:
    return tuple(queue_ms(batches, Conditions(server_load=load)) for load in LOADS)
