"""What serving costs: Narrows beside the bare graph and a plain server; overload, fairness, replacement.

    python benchmarks/serving.py [--seconds 3] [--streams 1 4 16 64] [--json]

The same tail and the same frames for all: a MobileNetV2 cut in its first half (or --subject), real photographs, best
quality. The load comes from a process of its own, one thread, so on few cores it takes its share from the server: "CPU
of bare" says how much of the server's processor time the bare graph would have taken, whoever else is there.

Overload, fairness and replacement are shown on a SqueezeNet cut early, whose tail is long enough for one process to
offer five times what it can answer.

  bare      the tail in an ONNX Runtime loop at its best batch size, symbols ready: the limit
  narrows   `narrows serve`, frames over bidirectional streams, one window of frames in flight to a stream
  plain     a grpc.aio server on the same wire that decodes and runs each frame alone, in one thread
  oip       Narrows again, over the Open Inference Protocol's stream
  ray       with --ray: `narrows serve --engine ray`, one replica on a cluster of this machine (extra [ray])
  triton    with --triton VENV: Triton's server, the same decoder and tail in its Python backend, over the same protocol
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import harness
import numpy as np
from load import NarrowsOipStream, OipStream, Result, Stream, cpu_seconds, make_frames
from narrows.protos import split_pb2 as pb
from narrows.protos import split_pb2_grpc
from narrows.runtime.bundle import Bundle
from narrows.runtime.frame import Frame, FrameCodec
from narrows.runtime.halves import Tail
from narrows.runtime.images import fit, load_image
from narrows.runtime.session import SessionOptions
from narrows.runtime.wire import frame_from_wire
from narrows.server_process import server_process
from triton_peer import triton_server

SUBJECT = "mobilenet-v2"
HEAVY = "squeezenet"
WINDOW = 4
"""Frames of one stream in flight."""
PICTURES = 64
THREADS = 1


async def closed(
    address: str,
    bundle: Bundle,
    frames: Sequence[Frame],
    streams: int,
    seconds: float,
    kind: type[Stream] = Stream,
) -> Result:
    """A closed loop of several streams."""
    opened = [kind(address, bundle, frames, None) for _ in range(streams)]
    await asyncio.gather(*(stream.open() for stream in opened))
    await asyncio.gather(*(stream.closed_loop(WINDOW, seconds) for stream in opened))
    return await _collected(opened)


async def poisson(
    address: str, bundle: Bundle, frames: Sequence[Frame], rates: Sequence[float], seconds: float, deadline_ms: int
) -> list[Result]:
    """An open loop: one stream for each rate; each one's result."""
    opened = [Stream(address, bundle, frames, None) for _ in rates]
    await asyncio.gather(*(stream.open() for stream in opened))
    loops = (
        stream.open_loop(rate, seconds, deadline_ms, seed)
        for seed, (stream, rate) in enumerate(zip(opened, rates, strict=True))
    )
    await asyncio.gather(*loops)
    results = [stream.result for stream in opened]
    await _collected(opened)
    return results


async def _collected(streams: Sequence[Stream]) -> Result:
    total = Result()
    for stream in streams:
        total.merge(stream.result)
        await stream.close()
    return total


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


def bare_loop(bundle: Bundle, frames: Sequence[Frame], seconds: float) -> tuple[float, int, float]:
    """Frames a second of the tail alone at its best batch size, that size, and processor milliseconds a frame."""
    codec = FrameCodec(bundle, 0)
    tail = Tail(bundle, bundle.manifest.cuts[0], SessionOptions(threads=THREADS))
    symbols = [codec.unpack(frame) for frame in frames]
    qualities = [frame.quality for frame in frames]
    best = (0.0, 0, 0.0)
    for size in (1, 2, 4, 8, 16, 32):
        tail.run(symbols[:size], qualities[:size])
        start, cpu, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds / 3:
            tail.run(symbols[:size], qualities[:size])
            count += size
        used_ms = (time.process_time() - cpu) / count * 1e3
        best = max(best, (count / (time.perf_counter() - start), size, used_ms))
    return best


def one_row(
    place: tuple[str, int], bundle: Bundle, frames: Sequence[Frame], streams: int, seconds: float, kind: type[Stream]
) -> dict[str, Any]:
    """One server under a closed loop, after a short one to warm up."""
    address, pid = place
    asyncio.run(closed(address, bundle, frames, streams, 0.5, kind))
    before = cpu_seconds(pid)
    result = asyncio.run(closed(address, bundle, frames, streams, seconds, kind))
    return {
        "streams": streams,
        "frames/s": round(result.goodput),
        "p50, ms": round(result.percentile(50), 2),
        "p99, ms": round(result.percentile(99), 2),
        "server CPU, ms/frame": round((cpu_seconds(pid) - before) / result.outcomes["ok"] * 1e3, 3),
    }


def throughput(
    bundle: Bundle,
    frames: Sequence[Frame],
    counts: Sequence[int],
    seconds: float,
    triton: Path | None,
    *,
    ray: bool,
) -> list[dict[str, Any]]:
    """Closed loop, by number of streams, systems in turns."""
    rows = []
    with ExitStack() as stack:
        narrows = stack.enter_context(narrows_server(bundle.root))
        systems: list[tuple[str, tuple[str, int], type[Stream]]] = [
            ("narrows", narrows, Stream),
            ("plain", stack.enter_context(plain_server(bundle)), Stream),
            ("oip", narrows, NarrowsOipStream),
        ]
        if triton is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            systems.append(("triton", stack.enter_context(triton_server(triton, bundle, folder, THREADS)), OipStream))
        if ray:
            systems.append(("ray", stack.enter_context(ray_server(bundle.root)), Stream))
        for streams in counts:
            limit, size, used_ms = bare_loop(bundle, frames, seconds)
            for name, place, kind in systems:
                try:
                    row = one_row(place, bundle, frames, streams, seconds, kind)
                except grpc.aio.AioRpcError as error:
                    # Seen with Triton's Python backend, which crashes at times when many streams are open.
                    print(f"{name} did not survive {streams} streams: {error.details()}", file=sys.stderr)
                    continue
                share = round(row["frames/s"] / limit, 3)
                lean = round(used_ms / row["server CPU, ms/frame"], 3)
                bare = {"bare, frames/s": round(limit), "batch": size, "of bare": share, "CPU of bare": lean}
                rows.append({"server": name, **row, **bare})
    return rows


def overload(bundle: Bundle, frames: Sequence[Frame], seconds: float) -> list[dict[str, Any]]:
    """Open loop at multiples of the capacity, over 8 streams; then one client that floods beside modest ones."""
    rows = []
    with narrows_server(bundle.root, "--max-wait", "0.1") as (address, pid):
        # So few in flight that none is refused: what is answered then is what can be answered.
        capacity = asyncio.run(closed(address, bundle, frames, 1, seconds)).goodput

        def row(name: str, results: Sequence[Result], share: float, cpu: float | None = None) -> dict[str, Any]:
            total = Result()
            for result in results:
                total.merge(result)
            return {
                "load": name,
                "offered/s": round(total.sent / total.seconds),
                "of capacity": round(total.sent / total.seconds / capacity, 2),
                "answered/s": round(total.goodput),
                "of what was possible": round(total.goodput / share, 3),
                "p50, ms": round(total.percentile(50), 1),
                "p99, ms": round(total.percentile(99), 1),
                "server's cores": "" if cpu is None else round((cpu_seconds(pid) - cpu) / total.seconds, 2),
                "outcomes": dict(total.outcomes),
            }

        for factor in (0.5, 1, 2, 5):
            rates, cpu = [factor * capacity / 8] * 8, cpu_seconds(pid)
            results = asyncio.run(poisson(address, bundle, frames, rates, seconds, 0))
            rows.append(row(f"{factor}× capacity", results, min(1.0, factor) * capacity, cpu))
        rates = [4 * capacity, *[capacity / 20] * 4]
        flood, *modest = asyncio.run(poisson(address, bundle, frames, rates, seconds, 0))
        rows.append(row("one floods at 4×", [flood], capacity * 0.8))
        rows.append(row("beside it, four at 1/20", modest, capacity / 5))
    return rows


def replacement(bundle: Bundle, other: Bundle, frames: Sequence[Frame], seconds: float) -> dict[str, Any]:
    """Replace the bundle again and again under load; what was lost."""
    with tempfile.TemporaryDirectory() as name:
        served = Path(name) / "net"
        shutil.copytree(bundle.root, served)
        with narrows_server(Path(name), "--watch", "0.1") as (address, _):

            async def run() -> tuple[Result, int]:
                load = asyncio.create_task(closed(address, bundle, frames, 2, seconds))
                swaps = 0
                while not load.done():
                    await asyncio.sleep(0.4)
                    await asyncio.to_thread(_swap, served, (other, bundle)[swaps % 2].root)
                    swaps += 1
                return await load, swaps

            result, swaps = asyncio.run(run())
    lost = result.sent - result.outcomes.total()
    return {"replacements": swaps, "frames": result.sent, "answered": result.outcomes["ok"], "lost": lost}


def _swap(target: Path, source: Path) -> None:
    fresh = target.with_name(".fresh")
    shutil.copytree(source, fresh)
    old = target.with_name(".old")
    target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each measurement")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--subject", default=SUBJECT, choices=[subject.name for subject in harness.SUBJECTS])
    parser.add_argument("--only", choices=["throughput", "overload"], help="half of the tables")
    parser.add_argument("--ray", action="store_true", help="Ray Serve too: needs pip install 'narrows[ray]'")
    parser.add_argument("--triton", type=Path, help="virtual environment with nvidia-pytriton: see triton_peer.py")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.only != "overload":
            bundle, frames = material(options.subject, Path(name))
            rows = throughput(bundle, frames, options.streams, options.seconds, options.triton, ray=options.ray)
            note = f"{options.subject}; {WINDOW} frames in flight to a stream"
            harness.report("Closed loop", rows, as_json=options.json, note=note)
        if options.only != "throughput":
            bundle, frames = material(HEAVY, Path(name))
            rows = overload(bundle, frames, options.seconds)
            harness.report("Open loop (Poisson), and fairness", rows, as_json=options.json, note=HEAVY)
            subject = next(subject for subject in harness.SUBJECTS if subject.name == HEAVY)
            other = subject.cut(Path(name), calibration=16, quantise=False)
            rows = [replacement(bundle, other, frames, 2 * options.seconds)]
            harness.report("Replaced under load", rows, as_json=options.json, note=HEAVY)


def material(name: str, folder: Path) -> tuple[Bundle, Sequence[Frame]]:
    """A subject's bundle, and frames of its pictures."""
    subject = next(subject for subject in harness.SUBJECTS if subject.name == name)
    bundle = subject.cut(folder)
    paths = subject.write_pictures(folder / "pictures" / name, PICTURES)
    preprocess = bundle.manifest.preprocess
    assert preprocess is not None
    return bundle, make_frames(bundle, [fit(load_image(path), preprocess) for path in paths])


if __name__ == "__main__":
    main()
