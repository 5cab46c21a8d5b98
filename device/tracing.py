"""A span for each frame, in the trace of who sent it, and the few bytes by which the server's spans join it.

Nothing is imported where a program has not imported OpenTelemetry itself. Its provider says which traces are sampled; a
frame of any other carries nothing.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..runtime.frame import pack_trace
from ..runtime.version import VERSION
from .outcome import Outcome

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_NS = 1_000_000_000


@dataclass(slots=True, eq=False)
class FrameTrace:
    """One frame's span."""

    span: Span
    context: bytes
    """For `Frame.trace`."""

    def end(self, outcome: Outcome) -> None:
        """The frame has its outcome."""
        from opentelemetry.trace import Status, StatusCode

        facts: dict[str, str | int | float] = {
            "narrows.frame": outcome.id,
            "narrows.mode": outcome.point.mode,
            "narrows.attempts": outcome.attempts,
            "narrows.payload_bytes": outcome.payload_bytes,
            "narrows.wire_bytes": outcome.wire_bytes,
            **{f"narrows.{stage}_ms": duration_ms for stage, duration_ms in outcome.ms.items()},
        }
        if outcome.point.cut is not None:
            facts["narrows.cut"] = outcome.point.cut
        if outcome.point.quality is not None:
            facts["narrows.quality"] = outcome.point.quality
        if outcome.provenance is not None:
            facts["narrows.provenance"] = outcome.provenance
        self.span.set_attributes(facts)
        if outcome.error is not None:
            self.span.set_status(Status(StatusCode.ERROR, outcome.error.code))
        self.span.end()


def begin(began: float) -> FrameTrace | None:
    """A frame's span under the caller's current one; None where nobody traces.

    Args:
        began: when the input was there, on `time.monotonic`'s clock.
    """
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import trace

    start_ns = time.time_ns() - round((time.monotonic() - began) * _NS)
    tracer = trace.get_tracer("narrows.device", VERSION)
    span = tracer.start_span("narrows frame", kind=trace.SpanKind.CLIENT, start_time=start_ns)
    known = span.get_span_context()
    if not known.is_valid or not known.trace_flags.sampled:
        return None
    return FrameTrace(span, pack_trace(known.trace_id, known.span_id, known.trace_flags))
