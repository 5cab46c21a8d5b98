"""How many frames may be under way at once: enough to keep the slowest stage busy, and hardly one that only waits."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

_RELEARN = 1000
"""Frames after which the link's own time is learnt anew: a path may have become longer, and a queue of one's own making
must not pass for a long path (BBR's ProbeRTT, Cardwell et al., ACM Queue 2016)."""
_ROUND = 8
"""Frames by which something is decided, at least: so many that their median tells a queue from jitter."""
_ODD_WAITING = 2.0
"""Frames that seem to wait for the link, or to be too few for it, from which on it must have changed."""
_NOT_SERVICE = ("source", "total", "link")


class Window:
    """A limit that follows TCP Vegas (Brakmo and Peterson, IEEE JSAC 1995, section 3.2), counted in frames.

    A frame that finds every stage free takes its stages' durations and the link's own time. What it takes beyond that
    it has waited: of limit frames, limit × waited / total wait somewhere. Once a round the limit grows where nobody was
    waiting, and shrinks where more than one was. So the slowest stage does not run dry, and no frame waits for much
    longer than that stage takes once.

    The stages say themselves how long they took. The link's own time is learnt with half as many frames under way,
    which is few enough that none waits there. It is the median of a round, and so are the times that are held against
    it: against the shortest time ever, as Vegas and BBR have it, jitter would pass for a queue, and a long link would
    stay empty.
    """

    LEAST_WAITING = 0.1
    MOST_WAITING = 1.1
    """More than one above the least: one frame more or less must not lead back and forth."""
    WAITING_INSIDE = 0.4
    """Of those that wait, what waits between the stages; the rest is not even taken from its source, and so is no older
    than it must be. As much as keeps the slowest stage from running dry when something takes a moment longer."""

    def __init__(self, most: int, first: int = 2) -> None:
        """Begin.

        Args:
            most: frames that may be under way, at most.
            first: frames to begin with, once the link is known.
        """
        self._most = most
        self._changed = threading.Condition(threading.Lock())
        self._used = 0
        self._link_ms: dict[Hashable, float] = {}
        """The link's own time, by kind of frame."""
        self._round: list[_Sample] = []
        self._hold_ms = 0.0
        self._was_full = False
        self._opened = False
        self._seen = 0
        self._stale = 0
        """Frames under way that began under another limit, and say nothing of this one."""
        self._goal: int | None = min(first, most)
        """The limit after learning; it is approached by one with every frame, so that they do not crowd."""
        self._learning = True
        self.limit = max(1, self._goal // 2)

    def acquire(self) -> float:
        """Wait for room for a frame; at once after `open`.

        Returns:
            For how many seconds the frame is better not taken from its source yet: it would only wait.
        """
        with self._changed:
            while self._used >= self.limit and not self._opened:
                self._changed.wait()
            self._used += 1
            self._was_full |= self._used >= self.limit
            return 0.0 if self._opened else self._hold_ms / 1000

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
            self._seen += 1
            if self._goal is not None and not self._learning:
                self._approach(self._goal)
            elif self._stale > 0:
                self._stale -= 1
            elif ms["total"] > 0:
                self._round.append(_Sample.of(ms, kind))
                if len(self._round) >= max(_ROUND, self.limit, self._goal or 0):
                    frames, self._round = self._round, []
                    self._learn(frames) if self._learning else self._decide(frames)
                    self._was_full = False

    def _decide(self, frames: Sequence[_Sample]) -> None:
        known = [frame for frame in frames if frame.kind in self._link_ms]
        if self._seen >= _RELEARN or len(known) < len(frames) / 2:
            self._begin_learning(self.limit)
            return
        queued_ms = median(frame.link_ms - self._link_ms[frame.kind] for frame in known)
        waited_ms = median(frame.waited_ms for frame in frames)
        cycle_ms = self._hold_ms + median(frame.total_ms for frame in frames)
        waiting = self.limit * (self._hold_ms + waited_ms + queued_ms) / cycle_ms
        on_link = self.limit * queued_ms / cycle_ms
        if abs(on_link) > _ODD_WAITING:
            self._begin_learning(min(self.limit, max(1, self.limit - int(on_link))))
        elif waiting > self.MOST_WAITING:
            self._set(max(1, self.limit - 1))
        elif waiting < self.LEAST_WAITING and self._was_full and self.limit < self._most:
            self._set(self.limit + 1)
        else:
            least_ms = self.WAITING_INSIDE * cycle_ms / self.limit
            self._set(self.limit, max(0.0, self._hold_ms + (waited_ms + queued_ms - least_ms) / 2))

    def _begin_learning(self, goal: int) -> None:
        """See with half of `goal` how the link is, and then let all of it through."""
        self._goal, self._learning = goal, True
        self._set(max(1, goal // 2))

    def _learn(self, frames: Sequence[_Sample]) -> None:
        if self._seen >= _RELEARN:
            self._seen, self._link_ms = 0, {}
        for kind in {frame.kind for frame in frames}:
            self._link_ms[kind] = median(frame.link_ms for frame in frames if frame.kind == kind)
        self._learning = False

    def _approach(self, goal: int) -> None:
        if self.limit < goal:
            self.limit += 1
            self._changed.notify()
        if self.limit >= goal:
            self._set(goal)
            self._goal = None

    def _set(self, limit: int, hold_ms: float = 0.0) -> None:
        self._stale = max(limit, self.limit)
        self._was_full = False
        self._hold_ms = hold_ms
        self.limit = limit
        self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class _Sample:
    """A frame, in milliseconds."""

    total_ms: float
    waited_ms: float
    """On the device, between its stages."""
    link_ms: float
    kind: Hashable

    @classmethod
    def of(cls, ms: Mapping[str, float], kind: Hashable) -> _Sample:
        link_ms = ms.get("link", 0.0)
        served_ms = sum(took for stage, took in ms.items() if stage not in _NOT_SERVICE)
        return cls(ms["total"], max(0.0, ms["total"] - served_ms - link_ms), link_ms, kind)
