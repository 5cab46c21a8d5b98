"""Counts and durations by model, as `ModelStatistics` reports them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from ...protos import oip_pb2 as pb
from ...runtime.answer import Reply
from ...runtime.errors import NarrowsError
from ..job import Job
from ..repository import WHOLE


@dataclass(slots=True)
class _Sum:
    """Of durations."""

    count: int = 0
    ms: float = 0.0

    def add(self, duration_ms: float) -> None:
        self.count += 1
        self.ms += duration_ms


@dataclass(slots=True)
class _Counts:
    success: _Sum = field(default_factory=_Sum)
    fail: _Sum = field(default_factory=_Sum)
    queue: _Sum = field(default_factory=_Sum)
    decode: _Sum = field(default_factory=_Sum)
    tail: _Sum = field(default_factory=_Sum)
    runs: float = 0.0
    last_ms: int = 0


class Statistics:
    """An observer of the data plane; frames of the native protocol are counted, too."""

    def __init__(self) -> None:
        self._counts: dict[str, _Counts] = {}

    def finished(self, job: Job, reply: Reply) -> None:
        """Count an outcome."""
        counts = self._counts.get(job.route)
        if counts is None:
            counts = self._counts[job.route] = _Counts()
        total_ms = (time.monotonic() - job.taken_s) * 1e3
        if reply.error is not None:
            counts.fail.add(total_ms)
            return
        counts.success.add(total_ms)
        counts.queue.add(reply.timing.queue_ms)
        counts.decode.add(reply.timing.decode_ms)
        counts.tail.add(reply.timing.tail_ms)
        counts.runs += 1 / reply.timing.batch
        counts.last_ms = round(time.time() * 1e3)

    def refused(self, model: str, error: NarrowsError) -> None:
        """Refusals are no inferences."""

    def message(self, bundle: str, *, split: bool, name: str, version: str) -> pb.ModelStatistics:
        """What is known of one model."""
        routes = [r for r in self._counts if r.startswith(f"{bundle}/") and (r != f"{bundle}/{WHOLE}") == split]
        parts = [self._counts[route] for route in routes]
        return pb.ModelStatistics(
            name=name,
            version=version,
            last_inference=max((part.last_ms for part in parts), default=0),
            inference_count=sum(part.success.count for part in parts),
            execution_count=round(sum(part.runs for part in parts)),
            inference_stats=pb.InferStatistics(
                success=_total(part.success for part in parts),
                fail=_total(part.fail for part in parts),
                queue=_total(part.queue for part in parts),
                compute_input=_total(part.decode for part in parts),
                compute_infer=_total(part.tail for part in parts),
            ),
        )


def _total(sums: Iterable[_Sum]) -> pb.StatisticDuration:
    together = list(sums)
    return pb.StatisticDuration(
        count=sum(one.count for one in together), ns=round(sum(one.ms for one in together) * 1e6)
    )
