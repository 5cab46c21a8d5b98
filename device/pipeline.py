"""Frames through stages: each stage has one frame at a time, and all of them are busy at once.

A frame is carried through its stages by one thread, and there are as many carriers as stages and one more. While one
carrier has frame *n* in the coder, the next has *n+1* in the head and another reads *n+2*: throughput is that of the
slowest stage. A frame that finds its stages free is never handed from thread to thread, so that it costs no more time
than its stages do; queues between stages would cost a wake-up each.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..runtime.early_exit import EarlyAnswer
from ..runtime.errors import InternalError, NarrowsError
from ..runtime.halves import Features
from ..runtime.point import Point
from .inputs import Input
from .outcome import Outcome
from .tracing import FrameTrace
from .uplink import Parcel
from .window import Window

log = logging.getLogger(__name__)

_JOIN_S = 2.0
"""How long `close` waits for the carriers: their source may be blocked in a camera's driver, or in a pipe."""


class Worker(Protocol):
    """The stages that a frame goes through; each may raise the `NarrowsError` that the frame ends in."""

    def compute(self, journey: Journey) -> None:
        """The first stage."""
        ...

    def encode(self, journey: Journey) -> None:
        """The second."""
        ...


@dataclass(slots=True, eq=False)
class Journey:
    """One frame on its way from its input to its outcome."""

    index: int
    input: Input
    engine: Worker
    """What it goes through: that of its beginning, whatever comes after."""
    point: Point
    began: float
    """When the input was there, on `time.monotonic`'s clock."""
    ms: dict[str, float]
    arrived: Callable[[Journey, Outcome], None]
    """Called when the frame ends; must not wait."""
    deadline: float | None = None
    """When its answer is due, on the same clock."""
    trace: FrameTrace | None = None
    """Its span, where somebody traces."""
    features: Features | None = None
    early: EarlyAnswer | None = None
    """What the early exit made of it, where it was asked."""
    parcel: Parcel | None = None
    """As it was handed to the uplink."""
    rescued: bool = False
    """The fallback has begun with it, or is through."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: bool = False

    @property
    def ended(self) -> bool:
        """Whether the frame has its outcome."""
        return self._ended

    def do(self, stage: Callable[[Journey], None]) -> None:
        """Let a stage do its part; what it raises is what the frame ends in."""
        try:
            stage(self)
        except NarrowsError as error:
            self.fail(error)
        except Exception as error:  # a fault of ours, or of a library: still this frame's end, and nobody else's
            log.exception("frame %d met a fault", self.index)
            self.fail(InternalError(f"{type(error).__name__}: {error}"))

    def end(self, outcome: Outcome) -> bool:
        """Give the frame its outcome; False where it has one already, and nothing changes."""
        with self._lock:
            if self._ended:
                return False
            self._ended = True
        total_ms = (time.monotonic() - self.began) * 1000
        self.arrived(self, replace(outcome, ms={**self.ms, **outcome.ms, "total": total_ms}))
        return True

    def fail(self, error: NarrowsError) -> bool:
        """End the frame with an error; False where it has an outcome already."""
        return self.end(self.outcome(self.point, error=error))

    def outcome(self, point: Point, **facts: Any) -> Outcome:
        """An outcome of this frame: `facts` of `Outcome`, and what its sending cost."""
        parcel = self.parcel
        if parcel is not None:
            facts |= {
                "attempts": parcel.attempts,
                "payload_bytes": parcel.frame.payload_bytes,
                "wire_bytes": parcel.wire_bytes,
            }
        if self.input.picture is not None:
            facts["picture"] = self.input.picture
        if self.early is not None:
            facts["confidence"] = self.early.confidence
        return Outcome(id=self.index, source=self.input.source, point=point, **facts)


class Turnstile:
    """Lets frames through one at a time, in the order of their numbers."""

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._next = 0

    @contextmanager
    def turn(self, index: int) -> Iterator[None]:
        """Wait until every lower number has been through; every number must come, once."""
        with self._condition:
            while self._next != index:
                self._condition.wait()
        try:
            yield
        finally:
            with self._condition:
                self._next += 1
                self._condition.notify_all()


class Pipeline:
    """Carries the frames of one stream; iterate `outcomes`."""

    def __init__(
        self,
        begin: Callable[[int, Callable[[Journey, Outcome], None]], Journey],
        stages: Sequence[Callable[[Journey], None]],
        window: Window,
        carriers: int,
        fatal: Callable[[], NarrowsError | None],
    ) -> None:
        """Prepare; threads start with `outcomes`.

        Args:
            begin: reads the next input (StopIteration after the last) and makes a journey of it.
            stages: what is done with it, in order. Its outcome may come later than its last stage.
            window: how many frames may be between their input and the caller.
            carriers: threads, at most.
            fatal: why no further frame can be answered, where that is so.
        """
        self._begin = begin
        self._stages = [(Turnstile(), stage) for stage in stages]
        self._fatal = fatal
        self._window = window
        self._source = threading.Lock()
        self._taken = 0
        self._stopped = False
        self._arrival = threading.Condition(threading.Lock())
        self._outcomes: dict[int, Outcome] = {}
        self._awaited = 0
        self._carrying = 0
        self._fault: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._carry, name=f"narrows-carrier-{n}", daemon=True)
            for n in range(min(carriers, len(stages) + 2))
        ]

    def outcomes(self) -> Iterator[Outcome]:
        """Every frame's outcome, in the order of the inputs.

        Raises:
            NarrowsError: no further frame can be answered; after the outcomes of those that were taken.
            Exception: whatever the source raised, likewise.
        """
        self._carrying = len(self._threads)
        for thread in self._threads:
            thread.start()
        try:
            while (outcome := self._next()) is not None:
                self._window.release()
                yield outcome
            if self._fault is not None:
                raise self._fault
        finally:
            self.close()

    def close(self) -> None:
        """Stop taking inputs, and wait for the threads."""
        self._stopped = True
        self._window.open()
        until = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            log.info("a thread is still waiting for its source, and ends with it")

    def _next(self) -> Outcome | None:
        with self._arrival:
            while self._awaited not in self._outcomes:
                if self._carrying == 0 and self._awaited >= self._taken:
                    return None
                self._arrival.wait()
            self._awaited += 1
            return self._outcomes.pop(self._awaited - 1)

    def _arrived(self, journey: Journey, outcome: Outcome) -> None:
        if outcome.error is None:
            self._window.observe(outcome.ms, outcome.point)
        with self._arrival:
            self._outcomes[journey.index] = outcome
            if journey.index == self._awaited:
                self._arrival.notify()

    # The carriers' threads.

    def _carry(self) -> None:
        try:
            while (journey := self._take()) is not None:
                for turnstile, stage in self._stages:
                    with turnstile.turn(journey.index):
                        if not journey.ended:
                            journey.do(stage)
        finally:
            with self._arrival:
                self._carrying -= 1
                self._arrival.notify()

    def _take(self) -> Journey | None:
        """The next frame, once there is room for it; None when there is none, or none is wanted any more."""
        time.sleep(self._window.acquire())
        with self._source:
            if self._stopped:
                return None
            try:
                if (fatal := self._fatal()) is not None:
                    raise fatal
                journey = self._begin(self._taken, self._arrived)
            except StopIteration:
                self._leave(None)
                return None
            except BaseException as error:  # noqa: BLE001 - the source's own; raised again where the caller waits
                self._leave(error)
                return None
            self._taken += 1
            return journey

    def _leave(self, fault: BaseException | None) -> None:
        self._fault = fault
        self._stopped = True
        self._window.open()
