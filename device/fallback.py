"""Answers on the device for frames whose answer from the server will not come in time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from .pipeline import Journey

log = logging.getLogger(__name__)

_NEVER = float("inf")


class Fallback:
    """Starts the whole model on the device just early enough that every guarded frame ends by its deadline.

    One thread computes. Of *n* guarded frames, the *k*-th to be due has to wait for the ones before it, so all can be
    in time only if the first begins at the latest at min over k of (deadline of k - k × duration of one run): earliest
    deadline first (Liu and Layland, JACM 1973), started as late as possible. The server's answer ends a frame's guard.
    """

    def __init__(self, compute: Callable[[Journey], None], expected_s: Callable[[], float]) -> None:
        """Prepare; the thread starts with `open`.

        Args:
            compute: answers a frame on the device and ends it; raises nothing.
            expected_s: how long that takes, from the upper end of what was seen.
        """
        self._compute = compute
        self._expected_s = expected_s
        self._changed = threading.Condition(threading.Lock())
        self._guarded: dict[Journey, float] = {}
        self._wake_at = _NEVER
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="narrows-fallback", daemon=True)

    def open(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread once it has answered what is due; guarded frames are no longer guarded."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def guard(self, journey: Journey, deadline: float) -> bool:
        """See to it that a frame has ended by `deadline` (`time.monotonic`), or one run later.

        Returns:
            False where it is too late for that: the thread has ended.
        """
        with self._changed:
            if self._closed:
                return False
            if not journey.rescued:
                self._guarded[journey] = min(deadline, self._guarded.get(journey, _NEVER))
                if self._latest_start() < self._wake_at:
                    self._changed.notify()
            return True

    def release(self, journey: Journey) -> None:
        """The frame has ended."""
        with self._changed:
            self._guarded.pop(journey, None)

    def _latest_start(self) -> float:
        one = self._expected_s()
        due = enumerate(sorted(self._guarded.values()), start=1)
        return min((deadline - position * one for position, deadline in due), default=_NEVER)

    def _work(self) -> None:
        while (journey := self._next()) is not None:
            if not journey.ended:
                self._compute(journey)

    def _next(self) -> Journey | None:
        """The frame to compute now, once it has to be."""
        with self._changed:
            while not self._closed:
                now, self._wake_at = time.monotonic(), self._latest_start()
                if self._wake_at <= now:
                    journey = min(self._guarded, key=self._guarded.__getitem__)
                    del self._guarded[journey]
                    journey.rescued = True
                    return journey
                self._changed.wait(None if self._wake_at == _NEVER else self._wake_at - now)
            return None
