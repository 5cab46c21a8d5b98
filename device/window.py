"""How many frames may be under way at once: enough to keep the slowest stage busy, and hardly one that only waits."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping

_RELEARN = 1000
"""Frames after which the shortest time on the link is forgotten, and one frame is let through alone to learn it anew: a
path may have become longer, and a queue of one's own making must not pass for a long path (BBR's ProbeRTT, Cardwell et
al., ACM Queue 2016)."""
_NOT_SERVICE = ("source", "total", "link")


class Window:
    """A limit that follows TCP Vegas (Brakmo and Peterson, IEEE JSAC 1995, section 3.2), counted in frames.

    A frame that finds every stage free takes `base`: its stages' durations, and the shortest time on the link that was
    seen. One that took `total` found limit × (1 - base / total) frames waiting before it somewhere. Once a round
    (`limit` outcomes) the limit grows where nobody was waiting, and shrinks where more than one was. So the slowest
    stage does not run dry, and no frame waits for much longer than that stage takes once.
    """

    LEAST_WAITING = 0.1
    MOST_WAITING = 1.1
    """More than one above the least: one frame more or less must not lead back and forth."""

    def __init__(self, most: int, first: int = 2) -> None:
        """Begin.

        Args:
            most: frames that may be under way, at most.
            first: frames to begin with.
        """
        self._most = most
        self._changed = threading.Condition(threading.Lock())
        self._used = 0
        self._link_ms = float("inf")
        self._kind: Hashable = None
        self._round: list[float] = []
        self._was_full = False
        self._opened = False
        self._seen = 0
        self._stale = 0
        """Frames under way that began under another limit, and say nothing of this one."""
        self._resume: tuple[int, int] | None = None
        self.limit = min(first, most)

    def acquire(self) -> None:
        """Wait for room for a frame; at once after `open`."""
        with self._changed:
            while self._used >= self.limit and not self._opened:
                self._changed.wait()
            self._used += 1
            self._was_full |= self._used >= self.limit

    def release(self) -> None:
        """A frame has left."""
        with self._changed:
            self._used -= 1
            self._changed.notify()

    def open(self) -> None:
        """Let everybody through from now on."""
        with self._changed:
            self._opened = True
            self._changed.notify_all()

    def observe(self, ms: Mapping[str, float], kind: Hashable = None) -> None:
        """Learn from a frame that was answered.

        Args:
            ms: durations of its stages, and `total`.
            kind: frames of another kind take another time on the link.
        """
        with self._changed:
            if "link" in ms:
                if kind != self._kind:
                    self._kind, self._link_ms = kind, float("inf")
                self._link_ms = min(self._link_ms, ms["link"])
            self._seen += 1
            if self._relearns():
                return
            if self._stale > 0:
                self._stale -= 1
                return
            base_ms = (self._link_ms if "link" in ms else 0.0) + sum(
                took for stage, took in ms.items() if stage not in _NOT_SERVICE
            )
            if ms["total"] > 0:
                self._round.append(max(0.0, 1 - base_ms / ms["total"]))
            if len(self._round) >= self.limit:
                self._adjust()

    def _relearns(self) -> bool:
        """Whether frames are being let out, so that one can go through alone."""
        if self._resume is not None:
            limit, left = self._resume
            self._resume = (limit, left - 1)
            if left <= 1:  # one more with every frame, so that they do not crowd
                self.limit += 1
                self._changed.notify()
            if self.limit >= limit:
                self._resume, self._stale = None, limit
            return True
        if self._seen >= _RELEARN and self.limit > 1:
            # Those under way come first, and then the one that is alone.
            self._resume, self.limit = (self.limit, self.limit), 1
            self._seen, self._link_ms = 0, float("inf")
            self._round.clear()
            return True
        return False

    def _adjust(self) -> None:
        waiting = self.limit * sorted(self._round)[len(self._round) // 2]
        if waiting > self.MOST_WAITING:
            self._stale = self.limit
            self.limit = max(1, self.limit - 1)
        elif waiting < self.LEAST_WAITING and self._was_full and self.limit < self._most:
            self._stale = self.limit
            self.limit += 1
            self._changed.notify()
        self._round.clear()
        self._was_full = False
