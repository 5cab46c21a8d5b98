"""A slow, far or failing link for everybody without a lab: a local TCP proxy that needs no root.

    with LinkEmulator("127.0.0.1:8470", parse_link("10mbit,20ms,1%")) as link:
        Device(bundle, link.address)

What passes is cut into segments. Each waits until the ones before it have left at the link's rate (a token bucket
whose depth is one segment), then for the delay and its jitter; segments never overtake one another. A lost segment
shows itself as TCP would: it and all that follow come one round trip later, and 200 ms later at least where nothing
follows that could have told the sender (Linux's shortest retransmission time-out, RFC 6298 with TCP_RTO_MIN). What a
loss does to TCP's own window is left out, so that a lossy link here is somewhat faster than a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections.abc import Coroutine
from typing import Any

from .schedule import Schedule

log = logging.getLogger(__name__)

SEGMENT_BYTES = 1448
"""A TCP segment's payload on Ethernet, with time stamps."""
_SLICE_S = 0.005
"""Time that one slice takes at the link's rate, where that is more than a segment: fewer wake-ups on fast links."""
_MOST_BYTES = 65_536
_QUEUED_BYTES = 262_144
"""What a direction holds before it stops reading: the queue of the slow hop."""
_RTO_S = 0.2


class LinkEmulator:
    """A proxy in a thread of its own, between its entering and its leaving."""

    def __init__(self, target: str, schedule: Schedule, seed: int = 0) -> None:
        """Prepare.

        Args:
            target: the server's "host:port".
            schedule: what the link does; its time runs from entering.
            seed: of jitter and losses, which are the same every time.
        """
        host, _, port = target.rpartition(":")
        self._target = (host.strip("[]"), int(port))
        self._schedule = schedule
        self._draw = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="narrows-link", daemon=True)
        self._ready = threading.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._began = 0.0
        self.address = ""
        """Where the device connects to, once entered."""

    def __enter__(self) -> LinkEmulator:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def time_s(self) -> float:
        """The schedule's time."""
        return time.monotonic() - self._began

    def restart(self) -> None:
        """Begin the schedule anew, now; connections stay."""
        self._began = time.monotonic()

    def cut(self) -> None:
        """Break every connection off, as a router that restarts does; new ones are taken."""
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for connection in self._connections:
            connection.cancel()

    def _serve(self) -> None:
        try:
            self._loop.run_until_complete(self._listen())
        finally:
            self._loop.close()

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._began = time.monotonic()
        self._ready.set()
        async with server:
            await self._stop.wait()
            self._cut()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._connect(reader, writer)
        except (OSError, asyncio.CancelledError) as error:
            log.debug("a connection over the emulated link was not made or cut: %r", error)
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        ways: list[Coroutine[Any, Any, None]] = [
            _Direction(self, reader, far_writer).run(),
            _Direction(self, far_reader, writer).run(),
        ]
        try:
            async with asyncio.TaskGroup() as group:
                for way in ways:
                    group.create_task(way)
        except* OSError as errors:
            log.debug("a connection over the emulated link broke: %r", errors)
        finally:
            far_writer.transport.abort()

    # What a direction asks.

    def slice_bytes(self) -> int:
        """How much travels as one piece just now."""
        rate_bps = self._schedule.at(self.time_s).rate_bps
        return int(min(_MOST_BYTES, max(SEGMENT_BYTES, rate_bps / 8 * _SLICE_S)))

    def passage(self, free: float, size_bytes: int, alone: bool) -> tuple[float, float]:
        """When a piece has left and when it arrives, on `time.monotonic`'s clock.

        Args:
            free: when what came before it has left.
            size_bytes: of the piece.
            alone: nothing is queued behind it.
        """
        begins_s = max(free, time.monotonic()) - self._began
        left_s = self._schedule.sent_by(begins_s, size_bytes)
        if left_s == float("inf"):
            return left_s, left_s
        state = self._schedule.at(left_s)
        arrives_s = left_s + state.delay_s + self._draw.uniform(0, state.jitter_s)
        segments = -(-size_bytes // SEGMENT_BYTES)
        if state.loss and self._draw.random() < 1 - (1 - state.loss) ** segments:
            arrives_s += max(_RTO_S if alone else 0.0, 2 * state.delay_s)
        return self._began + left_s, self._began + arrives_s


class _Direction:
    """One way of one connection."""

    def __init__(self, link: LinkEmulator, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._link = link
        self._reader = reader
        self._writer = writer
        self._under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._queued_bytes = 0
        self._room = asyncio.Event()

    async def run(self) -> None:
        """Pass on until the sender closes."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take())
            group.create_task(self._give())

    async def _take(self) -> None:
        free = arrived = 0.0
        while data := await self._reader.read(self._link.slice_bytes()):
            free, arrives = self._link.passage(free, len(data), self._under_way.empty())
            arrived = max(arrived, arrives)
            self._under_way.put_nowait((arrived, data))
            self._queued_bytes += len(data)
            while self._queued_bytes > _QUEUED_BYTES:
                self._room.clear()
                await self._room.wait()
        self._under_way.put_nowait((arrived, b""))

    async def _give(self) -> None:
        while True:
            arrives, data = await self._under_way.get()
            if arrives == float("inf"):
                await asyncio.Event().wait()  # until the connection is cut
            await asyncio.sleep(max(0.0, arrives - time.monotonic()))
            if not data:
                with contextlib.suppress(OSError):
                    self._writer.write_eof()
                return
            self._writer.write(data)
            await self._writer.drain()
            self._queued_bytes -= len(data)
            self._room.set()
