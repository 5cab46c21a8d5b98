"""Sources that do not wait: what to do with frames that come faster than they can be answered."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, Literal, TypeVar

Drop = Literal["block", "latest", "oldest"]
"""`block` lets the source wait; `latest` keeps the newest frame and drops what waited before it; `oldest` keeps the
frames that wait and drops newcomers."""

T = TypeVar("T")


class Intake(Generic[T]):
    """Reads a source as fast as it gives, in a thread of its own, and drops what there is no room for.

    Iterate it; `close` it when done. Dropped frames are counted, one by one, as they are dropped.
    """

    def __init__(
        self, source: Iterator[T], drop: Literal["latest", "oldest"], dropped: Callable[[], None], room: int = 2
    ) -> None:
        """Begin to read.

        Args:
            source: where from.
            drop: which frame goes when there is no room.
            dropped: called for every frame that goes.
            room: frames that may wait; of `latest` only one.
        """
        self._source = source
        self._drop = drop
        self._dropped = dropped
        self._room = 1 if drop == "latest" else room
        self._waiting: deque[T] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._ended = False
        self._closed = False
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="narrows-intake", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            while not self._waiting and not self._ended:
                self._changed.wait()
            if self._waiting:
                return self._waiting.popleft()
        if self._fault is not None:
            raise self._fault
        raise StopIteration

    def close(self) -> None:
        """Read no further; the thread ends with the frame that it is waiting for."""
        with self._changed:
            self._closed = self._ended = True
            self._changed.notify_all()

    def _read(self) -> None:
        try:
            for item in self._source:
                if self._closed:
                    return
                self._offer(item)
        except BaseException as error:  # noqa: BLE001 - the source's own; raised again where the frames are taken
            self._fault = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _offer(self, item: T) -> None:
        with self._changed:
            if len(self._waiting) >= self._room:
                self._dropped()
                if self._drop == "oldest":
                    return
                self._waiting.popleft()
            self._waiting.append(item)
            self._changed.notify()
