"""When to stop asking a server that does not answer, and when to ask again."""

from __future__ import annotations

from typing import Literal

State = Literal["closed", "open", "half-open"]


class Breaker:
    """A circuit breaker (Nygard, "Release It!", 2007): closed while answers come, open after failures in a row.

    An open breaker lets one frame through after a while, to see. Its end closes the breaker or opens it again.
    Not safe for threads: its owner holds a lock.
    """

    def __init__(self, failures: int = 3, cool_s: float = 0.5) -> None:
        self._most = failures
        self._cool_s = cool_s
        self._failures = 0
        self._opened_s = 0.0
        self.state: State = "closed"

    def allows(self, now_s: float) -> bool:
        """Whether a frame may be sent now."""
        if self.state == "closed":
            return True
        # Half-open: should the trial's end never be told, another may follow.
        return now_s - self._opened_s >= (self._cool_s if self.state == "open" else 2 * self._cool_s)

    def sent(self, now_s: float) -> None:
        """A frame is being sent; through an open breaker, that is the one to see by."""
        if self.state != "closed":
            self.state = "half-open"
            self._opened_s = now_s

    def succeeded(self) -> None:
        """An answer came in time."""
        self._failures = 0
        self.state = "closed"

    def failed(self, now_s: float) -> None:
        """None came, or too late."""
        self._failures += 1
        if self._failures >= self._most or self.state == "half-open":
            self.state = "open"
            self._opened_s = now_s
