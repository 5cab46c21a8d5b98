"""The servers that the serving benchmark compares, each a process of its own, and the cores that they run on."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from load import NarrowsOipStream, OipStream, Stream
from narrows.protos import split_pb2 as pb
from narrows.protos import split_pb2_grpc
from narrows.runtime.bundle import Bundle
from narrows.runtime.frame import FrameCodec
from narrows.runtime.halves import Tail
from narrows.runtime.session import SessionOptions
from narrows.runtime.wire import frame_from_wire
from narrows.server_process import server_process
from triton_peer import triton_server

THREADS = 1
PATIENT = ("--max-wait", 5)
"""Nobody else turns frames away, so here Narrows does not either: it would answer the rest the sooner."""
CORES = sorted(os.sched_getaffinity(0))
FIRST, LAST = CORES[:1], CORES[-1:]


@contextmanager
def on_cores(chosen: Sequence[int]) -> Iterator[None]:
    """Keep this process, with all its threads and those that it starts, to some cores for as long as the block runs."""
    _keep_to(chosen)
    try:
        yield
    finally:
        _keep_to(CORES)


def _keep_to(chosen: Sequence[int]) -> None:
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # a thread that has just ended
            os.sched_setaffinity(int(task.name), chosen)


class Plain(split_pb2_grpc.SplitInferenceServicer):
    """What one writes first: every frame alone, on one thread."""

    def __init__(self, bundle: Bundle) -> None:
        self._codec = FrameCodec(bundle, 0)
        self._tail = Tail(bundle, bundle.manifest.cuts[0], SessionOptions(threads=THREADS))
        self._thread = ThreadPoolExecutor(1)

    async def Stream(self, requests: AsyncIterator[pb.ClientMessage], context: Any) -> AsyncIterator[pb.ServerMessage]:  # noqa: N802
        loop = asyncio.get_running_loop()
        async for message in requests:
            if message.HasField("hello"):
                yield pb.ServerMessage(welcome=pb.Welcome(max_in_flight=64))
            else:
                yield await loop.run_in_executor(self._thread, self._answer, message.frame)

    def _answer(self, message: pb.Frame) -> pb.ServerMessage:
        frame = frame_from_wire(message)
        (outputs,) = self._tail.run([self._codec.unpack(frame)], [frame.quality])
        logits = next(iter(outputs.values()))
        best = pb.TopClass(index=int(np.argmax(logits)), score=float(np.max(logits)))
        return pb.ServerMessage(outcome=pb.Outcome(id=message.id, top=[best]))


def _plain_process(root: str, port: Any) -> None:
    os.setsid()  # as the other servers: Linux shares processor time out between sessions

    async def run() -> None:
        server = grpc.aio.server()
        split_pb2_grpc.add_SplitInferenceServicer_to_server(Plain(Bundle.open(root)), server)
        number = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        port.send(number)
        await server.wait_for_termination()

    asyncio.run(run())


@contextmanager
def plain_server(bundle: Bundle) -> Iterator[tuple[str, int]]:
    """The plain server in a process: address and process id."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_plain_process, args=(str(bundle.root), theirs), daemon=True)
    process.start()
    try:
        yield f"127.0.0.1:{mine.recv()}", process.pid or 0
    finally:
        process.terminate()
        process.join()


@contextmanager
def narrows_server(bundles: Path, *options: str) -> Iterator[tuple[str, int]]:
    """`narrows serve` in a process: address and process id."""
    # One thread and one run at a time, as for everyone here: what is compared is the way to the graph.
    with server_process(bundles, "--threads", THREADS, "--runs", 1, *options) as served:
        yield served.address, served.pid


@contextmanager
def ray_server(bundles: Path) -> Iterator[tuple[str, int]]:
    """`narrows serve --engine ray` in a process: address and process id, whose children are Ray's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with narrows_server(bundles, "--engine", "ray", "--insecure", "--replicas", "1", "--port", port) as (_, pid):
        yield f"127.0.0.1:{port}", pid


@dataclass(frozen=True)
class System:
    """A server that takes part."""

    name: str
    place: tuple[str, int]
    """Address and process id."""
    kind: type[Stream]
    """How it is spoken to."""


@contextmanager
def systems(bundle: Bundle, triton: Path | None, *, ray: bool, one_core: bool) -> Iterator[list[System]]:
    """All servers, started on the cores that they may use."""
    with ExitStack() as stack:
        _keep_to(FIRST if one_core else CORES)
        narrows = stack.enter_context(narrows_server(bundle.root, *PATIENT))
        found = [
            System("narrows", narrows, Stream),
            System("plain", stack.enter_context(plain_server(bundle)), Stream),
            System("oip", narrows, NarrowsOipStream),
        ]
        if triton is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            place = stack.enter_context(triton_server(triton, bundle, folder, THREADS))
            found.append(System("triton", place, OipStream))
        if ray:
            found.append(System("ray", stack.enter_context(ray_server(bundle.root)), Stream))
        _keep_to(CORES)
        yield found
