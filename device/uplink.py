"""Frames to a server and replies back, across lost connections, so that every frame ends exactly once.

A frame is handed over as a `Parcel` and ends in exactly one call of `Parcel.done`: with the server's reply, or with
the error that says why there is none. In between it may be sent several times. Every sending has an id of its own, so
a late or a second reply finds nothing under its id, and is counted and dropped.

Two threads: one holds the conversation (connect, read replies, connect again), one looks at the clock (frames whose
time is up, a server that has gone silent). Sending happens in the thread that brings the frame.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..runtime import codec
from ..runtime.answer import Reply
from ..runtime.errors import (
    TRANSIENT,
    ChecksumError,
    DeadlineError,
    DrainingError,
    FrameTooLargeError,
    NarrowsError,
    OverloadedError,
    ServerUnavailableError,
    UsageError,
)
from ..runtime.frame import Frame, Mode
from ..runtime.link import LinkOptions, check_target
from .backoff import Backoff
from .conversation import Conversation, Converse, Draining, Event, Greeting, Link, Welcome, with_time_left

log = logging.getLogger(__name__)

_MOST_ATTEMPTS = 5
"""Of a frame at a server that is full each time."""


@dataclass(frozen=True, slots=True)
class UplinkOptions:
    """How hard to try."""

    timeout_s: float = 10.0
    """A link that has been down for so long fails new frames at once, until it is back."""
    stall_s: float = 2.0
    """Silence of a server that owes something, after which the connection is made anew. Doubles with each stall in a
    row, up to `timeout_s`, and is never less than twice the last reply's time: a server that is merely slow is waited
    for."""
    first_delay_s: float = 0.05
    """Before the first try to connect again."""
    longest_delay_s: float = 1.0
    link: LinkOptions = field(default_factory=LinkOptions)

    def __post_init__(self) -> None:
        if min(self.timeout_s, self.stall_s, self.first_delay_s, self.longest_delay_s) <= 0:
            raise UsageError("the uplink's durations must be positive")


@dataclass(slots=True, eq=False)
class Parcel:
    """A frame between its coding and its end."""

    frame: Frame
    expires: float
    """On `time.monotonic`'s clock."""
    pack: Callable[[str], Frame]
    """Codes the frame again for another coder (its label), should a server ask for one."""
    done: Callable[[Parcel, Reply | NarrowsError], None]
    """Called once, from any thread; must not wait."""
    attempts: int = 0
    sent: float = 0.0
    """When it was sent last, on `time.monotonic`'s clock."""
    wire_bytes: int = 0
    corrupted: bool = False
    """The server has once found other symbols in it than were sent."""


@dataclass(slots=True)
class Counters:
    """What happened on the way, since the uplink was opened."""

    sent: int = 0
    resent: int = 0
    replies: int = 0
    late: int = 0
    """Replies to frames that had ended by then."""
    strange: int = 0
    """Replies to frames that were never sent, or answered before."""
    connections: int = 0
    failures: int = 0
    """Conversations that ended, or never began, against our will."""
    stalls: int = 0
    drains: int = 0


@dataclass(slots=True, eq=False)
class _Stream:
    """The conversation that is going on, and what it owes us."""

    conversation: Link
    heard: float
    """When the server said something last, or the conversation began."""
    welcome: Welcome | None = None
    draining: bool = False
    unanswered: dict[int, Parcel | None] = field(default_factory=dict)
    """By id of the sending, oldest first. None for a frame that has ended while its reply is still due."""

    def owes_since(self) -> float | None:
        """Since when the server has been silent although it owes a welcome or a reply; None where it owes nothing."""
        if self.welcome is None:
            return self.heard
        return self.heard if self.unanswered else None

    def has_room(self) -> bool:
        return self.welcome is not None and not self.draining and len(self.unanswered) < self.welcome.max_in_flight


_Ending = tuple[Parcel, Reply | NarrowsError]


class Uplink:
    """A lasting connection to one of several servers that hold the same bundle."""

    def __init__(
        self,
        servers: Sequence[str],
        greeting: Greeting,
        options: UplinkOptions | None = None,
        on_fatal: Callable[[NarrowsError], None] | None = None,
        converse: Converse = Conversation,
    ) -> None:
        """Prepare; nothing is sent before `open`.

        Args:
            servers: "host:port" of each.
            greeting: what to say first.
            options: how hard to try.
            on_fatal: told when no frame can ever be answered.
            converse: begins to talk to a server.

        Raises:
            UsageError: a server's address is none.
        """
        for server in servers:
            check_target(server)
        self._servers = tuple(servers)
        self._greeting = greeting
        self._begin_with = converse
        self._on_fatal = on_fatal
        self._options = options or UplinkOptions()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[Parcel] = deque()
        self._stream: _Stream | None = None
        self._ids = itertools.count(1)
        self._patience_s = self._options.stall_s
        self._max_frame_bytes: int | None = None
        self._down_since: float | None = time.monotonic()
        self._last_error: NarrowsError | None = None
        self._wake_at = float("inf")
        self._hold_until = 0.0
        """Nothing is sent before: a server that is full has said when another try has a chance."""
        self._backoff = Backoff(self._options.first_delay_s, self._options.longest_delay_s)
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._converse, name="narrows-uplink", daemon=True),
            threading.Thread(target=self._watch, name="narrows-clock", daemon=True),
        ]
        self.counters = Counters()
        self.coder = greeting.coders[0]
        """Label of the coder that was agreed on last; this end's own first choice before that."""
        self.fatal: NarrowsError | None = None
        """Why no frame can ever be answered, once that is known."""

    def open(self) -> None:
        """Begin to connect; returns at once."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the frames that are under way with an error, and wait for the threads."""
        with self._lock:
            self._closed.set()
            ended = self._end_all(ServerUnavailableError("the device was closed before an answer came"))
            if self._stream is not None:
                self._stream.conversation.hang_up()
            self._changed.notify_all()
        _tell(ended)
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def send(self, parcel: Parcel) -> None:
        """Take a frame on; returns at once. `parcel.done` will be called, perhaps before this returns."""
        with self._lock:
            refusal = self._refusal()
            if refusal is None:
                self._waiting.append(parcel)
                ended = self._pump()
                self._look_by(min(parcel.expires, time.monotonic() + self._patience_s))
            else:
                ended = [(parcel, refusal)]
        _tell(ended)

    def down_s(self) -> float:
        """For how long there has been no connection; 0 while there is one."""
        since = self._down_since
        return 0.0 if since is None else time.monotonic() - since

    def oldest_s(self) -> float:
        """For how long the oldest frame that was sent has been waiting for its answer; 0 where none is."""
        with self._lock:
            pending = self._stream.unanswered.values() if self._stream is not None else ()
            oldest = next((parcel.sent for parcel in pending if parcel is not None), None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    # What holds the lock. These return what has ended, to be told once the lock is free.

    def _refusal(self) -> NarrowsError | None:
        """Why a new frame need not even wait."""
        if self._closed.is_set():
            return ServerUnavailableError("the device is closed")
        if self.fatal is not None:
            return self.fatal
        if self._down_since is not None and time.monotonic() - self._down_since > self._options.timeout_s:
            return self._unavailable()
        return None

    @property
    def max_frame_bytes(self) -> int | None:
        """The server's cap on a frame's payloads; None while none has been heard."""
        return self._max_frame_bytes

    def _unavailable(self) -> NarrowsError:
        where = " or ".join(self._servers)
        why = str(self._last_error) if self._last_error else f"no answer from {where}; is a server running there?"
        return ServerUnavailableError(f"no connection: {why}")

    def _pump(self) -> list[_Ending]:
        """Send what waits, as far as the server takes it."""
        ended: list[_Ending] = []
        stream, now = self._stream, time.monotonic()
        while stream is not None and self._waiting and stream.has_room() and now >= self._hold_until:
            parcel = self._waiting.popleft()
            try:
                self._send_on(stream, parcel, now)
            except NarrowsError as error:
                ended.append((parcel, error))
        return ended

    def _send_on(self, stream: _Stream, parcel: Parcel, now: float) -> None:
        assert stream.welcome is not None
        split = parcel.frame.mode is Mode.SPLIT
        if split and parcel.frame.coder != codec.by_label(stream.welcome.coder).number:
            parcel.frame = parcel.pack(stream.welcome.coder)
        if parcel.frame.payload_bytes > stream.welcome.max_frame_bytes:
            raise FrameTooLargeError(
                f"a frame of {parcel.frame.payload_bytes} bytes, where the server takes "
                f"{stream.welcome.max_frame_bytes}; lower the quality, or raise --max-frame-bytes there"
            )
        sending = next(self._ids)
        if not stream.unanswered:
            stream.heard = now  # it owed nothing, so its silence was none
        stream.unanswered[sending] = parcel
        parcel.sent = now
        parcel.attempts += 1
        self.counters.sent += 1
        self.counters.resent += parcel.attempts > 1
        parcel.wire_bytes = stream.conversation.send(with_time_left(parcel.frame, sending, parcel.expires - now))

    def _send_again(self, parcels: Sequence[Parcel]) -> None:
        """Put frames that were sent back to the front, in their old order."""
        self._waiting.extendleft(reversed(parcels))

    def _end_all(self, error: NarrowsError) -> list[_Ending]:
        under_way = [p for p in self._stream.unanswered.values() if p is not None] if self._stream else []
        ended: list[_Ending] = [(parcel, error) for parcel in (*under_way, *self._waiting)]
        if self._stream is not None:
            self._stream.unanswered = dict.fromkeys(self._stream.unanswered)
        self._waiting.clear()
        return ended

    def _look_by(self, moment: float) -> None:
        """See to it that the clock's thread is awake then."""
        if moment < self._wake_at:
            self._changed.notify_all()

    # The conversation's thread.

    def _converse(self) -> None:
        for target in itertools.cycle(self._servers):
            if self._closed.is_set():
                return
            try:
                self._talk_to(target)
            except TRANSIENT as error:
                # Once for every time that it is down: somebody may be waiting before a screen.
                if not self._closed.is_set():
                    log.log(logging.INFO if self._last_error else logging.WARNING, "no connection (%s)", error)
                self._last_error = error
            except NarrowsError as error:
                self._give_up(error)
                return
            self._closed.wait(self._backoff.next_s())

    def _talk_to(self, target: str) -> None:
        """One conversation, until it ends; what it still owed then waits for the next.

        Raises:
            NarrowsError: why it ended; nothing is raised after a drain.
        """
        stream = _Stream(self._begin_with(target, self._greeting, self._options.link), time.monotonic())
        with self._lock:
            self._stream = stream
            if self._closed.is_set():
                stream.conversation.hang_up()
            self._look_by(stream.heard + self._patience_s)
        try:
            for event in stream.conversation.events():
                self._hear(stream, event)
                if stream.draining and not stream.unanswered:
                    self.counters.drains += 1
                    return
        except NarrowsError:
            self.counters.failures += 1
            raise
        finally:
            with self._lock:
                self._stream = None
                self._send_again([p for p in stream.unanswered.values() if p is not None])
                if self._down_since is None:
                    self._down_since = time.monotonic()
            stream.conversation.close()

    def _hear(self, stream: _Stream, event: Event) -> None:
        stream.heard = time.monotonic()
        if isinstance(event, Reply):
            self._receive(stream, event)
            return
        ended: list[_Ending] = []
        with self._lock:
            if isinstance(event, Draining):
                stream.draining = True
            else:
                self._begin(stream, event)
                ended = self._pump()
        _tell(ended)

    def _begin(self, stream: _Stream, welcome: Welcome) -> None:
        if stream.welcome is not None:
            raise ServerUnavailableError(f"{stream.conversation.target} said welcome twice")
        stream.welcome = welcome
        self.coder = welcome.coder
        self._max_frame_bytes = welcome.max_frame_bytes
        self._down_since = None
        self._last_error = None
        self.counters.connections += 1

    def _receive(self, stream: _Stream, reply: Reply) -> None:
        """End the frame that a reply is for, or send it again, and send what its place was needed for."""
        if stream.welcome is None:
            raise ServerUnavailableError(f"{stream.conversation.target} answered before its welcome")
        with self._lock:
            known = reply.id in stream.unanswered
            parcel = stream.unanswered.pop(reply.id, None)
            if known:
                self._backoff.reset()
            if parcel is not None:
                took_s = stream.heard - parcel.sent
                self._patience_s = min(self._options.timeout_s, max(self._options.stall_s, 2 * took_s))
            self._count(known, parcel)
            again = parcel is not None and self._deserves_another_try(parcel, reply.error)
            if parcel is not None and again:
                self._send_again([parcel])
        if parcel is not None and not again:
            parcel.done(parcel, reply)
        if self._waiting:
            with self._lock:
                ended = self._pump()
            _tell(ended)

    def _deserves_another_try(self, parcel: Parcel, error: NarrowsError | None) -> bool:
        """Whether a server's refusal is not the frame's fault, and another try may come in time."""
        if isinstance(error, ChecksumError) and not parcel.corrupted:
            parcel.corrupted = True
            return True
        if isinstance(error, OverloadedError) and error.retry_ms:
            moment = time.monotonic() + error.retry_ms / 1000
            if moment >= parcel.expires or parcel.attempts >= _MOST_ATTEMPTS:
                return False
            self._hold_until = max(self._hold_until, moment)
            self._look_by(moment)
            return True
        return isinstance(error, DrainingError)

    def _count(self, known: bool, parcel: Parcel | None) -> None:
        self.counters.replies += parcel is not None
        self.counters.late += known and parcel is None
        self.counters.strange += not known

    def _give_up(self, error: NarrowsError) -> None:
        with self._lock:
            self.fatal = error
            ended = self._end_all(error)
        if self._on_fatal is not None:
            self._on_fatal(error)
        _tell(ended)

    # The clock's thread.

    def _watch(self) -> None:
        while True:
            with self._lock:
                if self._closed.is_set():
                    return
                now = time.monotonic()
                self._break_silence(now)
                ended = self._expire(now) + self._pump()
                if not ended:
                    self._wake_at = self._next_moment()
                    self._changed.wait(None if self._wake_at == float("inf") else max(0.0, self._wake_at - now))
            _tell(ended)

    def _break_silence(self, now: float) -> None:
        """Hang up on a server that owes something and says nothing."""
        stream = self._stream
        since = stream.owes_since() if stream is not None else None
        if stream is None or since is None or now - since < self._patience_s:
            return
        log.warning("%s has been silent for %.1f s", stream.conversation.target, now - since)
        self.counters.stalls += 1
        self._patience_s = min(self._options.timeout_s, 2 * self._patience_s)
        stream.heard = now  # until the conversation's thread has noticed
        stream.conversation.hang_up()

    def _expire(self, now: float) -> list[_Ending]:
        """End the frames whose time is up."""
        ended: list[_Ending] = []
        if self._stream is not None:
            for sending, parcel in self._stream.unanswered.items():
                if parcel is not None and parcel.expires <= now:
                    self._stream.unanswered[sending] = None
                    ended.append((parcel, _too_late(parcel)))
        for parcel in [p for p in self._waiting if p.expires <= now]:
            self._waiting.remove(parcel)
            ended.append((parcel, _too_late(parcel) if self._down_since is None else self._unavailable()))
        return ended

    def _next_moment(self) -> float:
        """When the clock has to be looked at again."""
        moments = [parcel.expires for parcel in self._waiting]
        if self._waiting and self._hold_until > time.monotonic():
            moments.append(self._hold_until)
        if self._stream is not None:
            moments += [parcel.expires for parcel in self._stream.unanswered.values() if parcel is not None]
            if (since := self._stream.owes_since()) is not None:
                moments.append(since + self._patience_s)
        return min(moments, default=float("inf"))


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _too_late(parcel: Parcel) -> DeadlineError:
    return DeadlineError(f"no answer in time; the frame was sent {_times(parcel.attempts)}")


def _tell(ended: Sequence[_Ending]) -> None:
    for parcel, result in ended:
        parcel.done(parcel, result)
