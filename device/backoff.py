"""How long to wait before the next try."""

from __future__ import annotations

import random


class Backoff:
    """Exponential back-off with jitter: half of the delay is certain, half is drawn.

    Without the draw, every device that lost the same server would come back at the same moment (Brooker, "Exponential
    Backoff And Jitter", AWS Architecture Blog, 2015; this is its "equal jitter").
    """

    def __init__(self, first_s: float, longest_s: float, draw: random.Random | None = None) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._draw = draw or random.Random()
        self._tries = 0

    def next_s(self) -> float:
        """Seconds to wait now; twice as many the next time, on the average, up to the longest."""
        full = min(self._longest_s, self._first_s * 2.0 ** min(self._tries, 62))
        self._tries += 1
        return self._draw.uniform(full / 2, full)

    def reset(self) -> None:
        """Begin again with the first delay: something worked."""
        self._tries = 0
