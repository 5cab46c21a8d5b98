"""What a frame costs beyond its two graphs, beside a bare grpc.aio ping-pong of the same size.

    python benchmarks/overhead.py [--json]

For each bundle, in turns: one frame at a time through a device in this process and a server in another; head and
tail alone in ONNX Runtime, one after the other on the same inputs; and a grpc.aio stream, again between this process
and another, whose messages are as large as the frame and its outcome, and on which nothing is computed. Overhead is the
median frame less the median of the two graphs.

The bare stream is measured twice: with the next message as soon as the last is answered, and at a frame's pace, the two
graphs run here before every message. In between the other process sleeps, as a server does between two frames of one
device, and waking it is a good part of what a message then costs.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc.aio
import harness
import numpy as np
from narrows.device import Device
from narrows.runtime.bundle import Bundle
from narrows.runtime.codec import labels
from narrows.runtime.frame import FrameCodec
from narrows.runtime.halves import Head, Tail, load_arrays

ROUNDS, FRAMES, WARM_UP = 9, 40, 15


def medians(measure: Callable[[], float], count: int) -> float:
    """Median of `count` measurements, after a warm-up."""
    for _ in range(WARM_UP):
        measure()
    return float(np.median([measure() for _ in range(count)]))


def timed(work: Callable[[], Any]) -> float:
    """Milliseconds that a call takes."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


async def _answer(port: Connection, reply_bytes: int) -> None:
    reply = bytes(reply_bytes)

    async def stream(messages: Any, _: Any) -> Any:
        async for _message in messages:
            yield reply

    handler = grpc.stream_stream_rpc_method_handler(stream)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bare", {"Stream": handler})])
    number = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    port.send(number)
    with suppress(EOFError):
        await asyncio.to_thread(port.recv)  # until the other end closes
    await server.stop(None)


def _answer_process(port: Connection, reply_bytes: int) -> None:
    asyncio.run(_answer(port, reply_bytes))


class PingPong:
    """A bare grpc.aio stream between this process and another."""

    def __init__(self, request_bytes: int, reply_bytes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._mine, theirs = context.Pipe()
        self._process = context.Process(target=_answer_process, args=(theirs, reply_bytes), daemon=True)
        self._process.start()
        theirs.close()
        self._target = f"127.0.0.1:{self._mine.recv()}"
        self._request = bytes(request_bytes)

    def median_ms(self, count: int, before: Callable[[], Any] = lambda: None) -> float:
        """Median round trip of `count`, one at a time, with something done before each."""
        return asyncio.run(self._measure(count, before))

    async def _measure(self, count: int, before: Callable[[], Any]) -> float:
        async with grpc.aio.insecure_channel(self._target) as channel:
            call = channel.stream_stream("/bare/Stream")()
            times = []
            for i in range(WARM_UP + count):
                before()
                start = time.perf_counter()
                await call.write(self._request)
                await call.read()
                if i >= WARM_UP:
                    times.append((time.perf_counter() - start) * 1000)
            await call.done_writing()
        return float(np.median(times))

    def close(self) -> None:
        """End the other process."""
        self._mine.close()
        self._process.join(10)


@contextmanager
def closing(*things: Any) -> Iterator[None]:
    """Close all of them in the end."""
    try:
        yield
    finally:
        for thing in things:
            thing.close()


def measure(bundle: Bundle, address: str) -> dict[str, Any]:
    """One row: the frame, its graphs, and the bare stream, in turns."""
    cut = bundle.manifest.cuts[0]
    picture = load_arrays(bundle, cut.golden_head)["input/0"]
    head, tail, quality = Head(bundle, cut), Tail(bundle, cut), len(cut.qualities) - 1
    symbols = head.run([picture], quality).symbols
    frames, graphs, bare, paced = [], [], [], []

    def both() -> None:
        head.run([picture], quality)
        tail.run([symbols], [quality])

    with Device(bundle, address) as device:
        outcome = device.infer(picture, quality=quality)
        payload = FrameCodec(bundle, 0).pack(1, symbols, quality, labels()[0]).payload_bytes
        reply_bytes = sum(array.nbytes for array in outcome.outputs.values()) + 40
        pingpong = PingPong(outcome.wire_bytes, reply_bytes)
        with closing(pingpong):
            for _ in range(ROUNDS):
                frames.append(medians(lambda: timed(lambda: device.infer(picture, quality=quality)), FRAMES))
                graphs.append(medians(lambda: timed(both), FRAMES))
                bare.append(pingpong.median_ms(FRAMES))
                paced.append(pingpong.median_ms(FRAMES, both))
    frame, alone, bare_ms, paced_ms = (float(np.median(values)) for values in (frames, graphs, bare, paced))
    overhead = frame - alone
    return {
        "bundle": bundle.manifest.name,
        "payload, bytes": payload,
        "frame, ms": round(frame, 3),
        "head + tail, ms": round(alone, 3),
        "overhead, ms": round(overhead, 3),
        "bare, ms": round(bare_ms, 3),
        "overhead / bare": round(overhead / bare_ms, 2),
        "bare at pace, ms": round(paced_ms, 3),
        "overhead / at pace": round(overhead / paced_ms, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundles = [subject.cut(folder) for subject in harness.SUBJECTS]
        with harness.server(folder / "bundles") as address:
            rows = [measure(bundle, address) for bundle in bundles]
    harness.report("A frame beyond its graphs, on loopback, one at a time", rows, as_json=options.json)


if __name__ == "__main__":
    main()
