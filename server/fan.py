"""One frame for several tails: decoded once, a job for each tail, one outcome for all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ..runtime.answer import Reply, TailAnswer
from ..runtime.frame import Frame
from .engine import Engine, Prepared
from .job import Job


class SharedFrame:
    """A frame that several workers need decoded, and the first of them decodes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._prepared: Prepared | None = None

    def prepare(self, engine: Engine, frame: Frame) -> Prepared:
        """As `Engine.prepare`."""
        with self._lock:
            if self._prepared is None:
                self._prepared = engine.prepare(frame)
            return self._prepared


@dataclass(eq=False, slots=True)
class Fan:
    """What the tails of one frame have said so far. Lives on the event loop."""

    tails: Sequence[str]
    """As they were asked for."""
    done: Callable[[Reply], None]
    """Called once: with all answers, or with the first error."""
    shared: SharedFrame = field(default_factory=SharedFrame)
    jobs: dict[str, Job] = field(default_factory=dict)
    """Those that have no outcome yet."""
    _replies: dict[str, Reply] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Job]:
        return iter(tuple(self.jobs.values()))

    def take(self, tail: str, reply: Reply) -> Reply | None:
        """One tail's outcome; the frame's, once that is certain."""
        del self.jobs[tail]
        if reply.error is not None:
            return reply
        self._replies[tail] = reply
        if self.jobs:
            return None
        first, *others = self.tails
        further = {name: TailAnswer(self._replies[name].outputs, self._replies[name].top) for name in others}
        return replace(self._replies[first], timing=reply.timing, further=further)
