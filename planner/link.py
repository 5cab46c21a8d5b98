"""A link, as a plan is made for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..runtime.errors import UsageError

RTO_S = 0.2
"""What a lost last segment costs at least: Linux's shortest retransmission time-out (RFC 6298 with TCP_RTO_MIN)."""
SEGMENT_BYTES = 1448


@dataclass(frozen=True, slots=True)
class Link:
    """A link between one device and the server."""

    bps: float
    """Bits a second, device to server; 0 while nothing passes, inf for no limit."""
    rtt_s: float = 0.0
    """Round trip of an empty message."""
    down_bps: float | None = None
    """Bits a second, server to device; as `bps` where None."""
    jitter_s: float = 0.0
    """Added to each direction: uniform, 0 to this."""
    loss: float = 0.0
    """Share of segments that are lost, 0…1."""

    def __post_init__(self) -> None:
        rates = (self.bps, self.back_bps)
        if any(math.isnan(v) or v < 0 for v in (*rates, self.rtt_s, self.jitter_s)) or not 0 <= self.loss < 1:
            raise UsageError(f"a link has rate ≥ 0, round trip ≥ 0, jitter ≥ 0 and loss in 0…1, not {self}")
        if math.isinf(self.rtt_s) or math.isinf(self.jitter_s):
            raise UsageError(f"a link's round trip is finite, not {self}")

    @property
    def back_bps(self) -> float:
        """Bits a second, server to device."""
        return self.bps if self.down_bps is None else self.down_bps

    @property
    def passes(self) -> bool:
        """Whether anything gets through at all."""
        return self.bps > 0 and self.back_bps > 0

    @property
    def byte_s(self) -> float:
        """Seconds that one byte to the server takes."""
        return 8 / self.bps if self.bps > 0 else math.inf

    def up_s(self, size_bytes: float) -> float:
        """Seconds in which `size_bytes` leave the device."""
        return size_bytes * self.byte_s

    def down_s(self, size_bytes: float) -> float:
        """Seconds in which `size_bytes` leave the server."""
        return size_bytes * 8 / self.back_bps if self.back_bps > 0 else math.inf

    def stall_s(self, size_bytes: float) -> float:
        """Expected seconds that lost segments cost a message, as TCP makes good for them.

        The last segment's loss is noticed by a time-out (RFC 6298), the others' a round trip later (RFC 5681, fast
        retransmit). What losses do to the congestion window is left out.
        """
        segments = max(1, math.ceil(size_bytes / SEGMENT_BYTES))
        rest = 1 - (1 - self.loss) ** (segments - 1)
        return self.loss * max(RTO_S, self.rtt_s) + rest * self.rtt_s
