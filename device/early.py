"""What is expected of an early exit: how long it takes, how many frames end there, and what the rest costs."""

from __future__ import annotations

from dataclasses import replace

from ..runtime.manifest import Exit
from ..runtime.point import Point
from .estimates import Duration
from .policies import Candidate

_WEIGHT = 1 / 16
"""Of a frame in the share that is sent: scenes last for longer than changes of a link."""


class EarlyEstimate:
    """Of one cut's early exit. Not safe for threads: its owner holds a lock."""

    def __init__(self, early: Exit, confidence: float | None) -> None:
        """Begin with the bundle's own table.

        Args:
            early: the exit as it was measured.
            confidence: that of a frame that is not sent; None where the exit is not asked before.
        """
        self.exit = early
        self.duration = Duration()
        self._confidence = confidence
        rungs = [p.coverage for p in early.qualities[-1].points if confidence is not None and p.threshold <= confidence]
        self.sent_share = 1 - rungs[-1] if rungs else 1.0
        """Of frames that were asked about, those that went to the server all the same."""

    def point(self, cut: str) -> Point:
        """The exit as an operating point of its own, at the quality that it answers best at."""
        agreements = [quality.agreement for quality in self.exit.qualities]
        return Point("exit", cut, max(range(len(agreements)), key=lambda q: (agreements[q], q)))

    def sent(self, was: bool) -> None:
        """Take in whether a frame went to the server although the exit was asked."""
        self.sent_share += _WEIGHT * (was - self.sent_share)

    def before(self, sent: Candidate, early: Candidate) -> Candidate:
        """What a point costs whose frames ask the exit first.

        A mixture of two: with share *s* sent, the mean is early + s × rest, and rest's part of the mean deviation is
        2 s (1 - s) × rest.

        Args:
            sent: the same without an exit.
            early: a frame that ends there.
        """
        share, exit_s = self.sent_share, self.duration.mean_s
        rest_s = max(0.0, sent.latency_s + exit_s - early.latency_s)
        quality = self.exit.qualities[sent.point.quality or 0]
        answered = quality.agreement_above(self._confidence or 0.0)
        rest_j = max(0.0, sent.energy_j - early.energy_j)
        return replace(
            sent,
            latency_s=early.latency_s + share * rest_s,
            device_s=sent.device_s + exit_s,
            server_s=share * sent.server_s,
            spread_s=early.spread_s + share * sent.spread_s + 2 * share * (1 - share) * rest_s,
            wire_bytes=share * sent.wire_bytes,
            accuracy=(1 - share) * answered + share * sent.accuracy,
            energy_j=early.energy_j + share * rest_j,
        )
