"""OpenTelemetry spans of frames on the server, under the span that the frame has on its device.

The spans go to the process's tracer provider: run the server under `opentelemetry-instrument`, or set a provider up
before `serve`. A device whose program traces sends its span with every frame (`Frame.trace`); other clients may open
a call or a stream with `traceparent` (W3C Trace Context).
Times of a span are this machine's; what a trace shows side by side was never subtracted across machines.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Status, StatusCode, Tracer, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ..runtime.answer import Reply, ServerTiming
from ..runtime.errors import NarrowsError
from ..runtime.frame import unpack_trace
from ..runtime.version import VERSION
from .job import Job

_NS = 1_000_000_000
_MS_NS = 1_000_000
_propagator = TraceContextTextMapPropagator()


class Tracing:
    """An observer that makes one span of each frame, with one below it for each stage."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._tracer: Tracer = trace.get_tracer("narrows.server", VERSION, provider)

    def finished(self, job: Job, reply: Reply) -> None:
        """Make the spans of a frame, after the fact: nothing is measured twice."""
        end_ns = time.time_ns()
        start_ns = end_ns - round((time.monotonic() - job.taken_s) * _NS)
        parent = _parent(job)
        attributes: dict[str, str | int] = {
            "narrows.route": job.route,
            "narrows.frame": job.frame.id,
            "narrows.quality": job.frame.quality,
            "narrows.payload_bytes": job.size,
            "narrows.client": job.client.name,
            "narrows.request": job.client.request,
            "narrows.batch": reply.timing.batch,
        }
        kind = trace.SpanKind.SERVER
        span = self._tracer.start_span("frame", parent, kind, attributes=attributes, start_time=start_ns)
        if reply.error is not None:
            span.set_status(Status(StatusCode.ERROR, reply.error.code))
        else:
            below = trace.set_span_in_context(span)
            for name, begin_ns, over_ns in _stages(start_ns, reply.timing):
                self._tracer.start_span(name, below, start_time=begin_ns).end(over_ns)
        span.end(end_ns)

    def refused(self, model: str, error: NarrowsError) -> None:
        """A refusal is over at once: the metrics count it."""


def _parent(job: Job) -> Context | None:
    """The frame's own span on the device; else that of its stream or call, where it brought one."""
    known = unpack_trace(job.frame.trace)
    if known is not None:
        trace_id, span_id, flags = known
        context = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags))
        return trace.set_span_in_context(trace.NonRecordingSpan(context))
    return _propagator.extract({"traceparent": job.client.trace}) if job.client.trace else None


def _stages(start_ns: int, timing: ServerTiming) -> Iterator[tuple[str, int, int]]:
    """Name, begin and end of each stage; they follow one another, and the queue's two parts are taken together."""
    for name, duration_ms in (("queue", timing.queue_ms), ("decode", timing.decode_ms), ("tail", timing.tail_ms)):
        end_ns = start_ns + round(duration_ms * _MS_NS)
        yield name, start_ns, end_ns
        start_ns = end_ns
