"""Counts and durations by model, as `ModelStatistics` reports them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ...protos import oip_pb2 as pb
from ...runtime.answer import Reply
from ...runtime.errors import NarrowsError
from ..job import Job
from ..repository import WHOLE


@dataclass(slots=True)
class _Sum:
    count: int = 0
    ns: int = 0

    def add(self, duration_ms: float) -> None:
        self.count += 1
        self.ns += round(duration_ms * 1e6)

    def message(self) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=self.count, ns=self.ns)


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
        self._counts: dict[tuple[str, bool], _Counts] = {}

    def finished(self, job: Job, reply: Reply) -> None:
        """Count an outcome."""
        model, _, graph = job.route.partition("/")
        counts = self._counts.setdefault((model, graph != WHOLE), _Counts())
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
        counts = self._counts.get((bundle, split), _Counts())
        return pb.ModelStatistics(
            name=name,
            version=version,
            last_inference=counts.last_ms,
            inference_count=counts.success.count,
            execution_count=round(counts.runs),
            inference_stats=pb.InferStatistics(
                success=counts.success.message(),
                fail=counts.fail.message(),
                queue=counts.queue.message(),
                compute_input=counts.decode.message(),
                compute_infer=counts.tail.message(),
            ),
        )
