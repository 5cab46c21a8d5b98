"""What serving costs: Narrows beside the bare graph and a plain server; overload, fairness, replacement.

    python benchmarks/serving.py [--seconds 3] [--streams 1 4 16 64] [--one-core] [--json]

The same tail and the same frames for all, real photographs at the best quality, and two tails: a MobileNetV2 cut in
its first half (some milliseconds a frame), and a CIFAR ResNet-20's (a quarter of one, hardly more than it takes to
decode a frame and to carry it through gRPC).

Everyone's tail has one thread and one run at a time. The load is a process of its own, kept to the last core. The bare
loop has the first core to itself, all that its one thread can use. The servers may use all cores, since what they do
beside the tail is what is judged: "of bare" says how much of the tail's throughput arrives, and "CPU of bare" how much
of the server's processor time the bare graph would have taken, whoever else is there. With --one-core the servers have
the first core alone for everything; "of bare with decoding" then is the share of what that core could do. The bare loop
is measured before and after each row, so that a busy moment of the machine does not pass for a slow server.

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
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import harness
from load import Result, Stream, cpu_seconds, make_frames
from narrows.runtime.bundle import Bundle
from narrows.runtime.frame import Frame, FrameCodec
from narrows.runtime.halves import Tail
from narrows.runtime.images import fit, load_image
from narrows.runtime.session import SessionOptions
from peers import FIRST, LAST, THREADS, System, narrows_server, on_cores, systems

TAILS = ("mobilenet-v2", "resnet20-cifar10")
HEAVY = "squeezenet"
WINDOW = 4
"""Frames of one stream in flight."""
PICTURES = 64
SIZES = (1, 2, 4, 8, 16, 32)
"""Batch sizes that the bare loop tries."""
LOAD = 0.4
"""Of the bare loop's throughput: what everyone is offered when latencies are compared at equal load."""


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
    address: str,
    bundle: Bundle,
    frames: Sequence[Frame],
    rates: Sequence[float],
    seconds: float,
    kind: type[Stream] = Stream,
) -> list[Result]:
    """An open loop: one stream for each rate; each one's result."""
    opened = [kind(address, bundle, frames, None) for _ in rates]
    await asyncio.gather(*(stream.open() for stream in opened))
    loops = (
        stream.open_loop(rate, seconds, 0, seed) for seed, (stream, rate) in enumerate(zip(opened, rates, strict=True))
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


class Bare:
    """The tail alone, in this process, on the first core."""

    def __init__(self, bundle: Bundle, frames: Sequence[Frame], seconds: float) -> None:
        self._frames = frames
        self._codec = FrameCodec(bundle, 0)
        self._tail = Tail(bundle, bundle.manifest.cuts[0], SessionOptions(threads=THREADS))
        self._symbols = [self._codec.unpack(frame) for frame in frames]
        self._qualities = [frame.quality for frame in frames]
        # By processor time, which neighbours on the machine hardly touch.
        self.size = min(SIZES, key=lambda size: self._measure(size, seconds / len(SIZES))[1])
        """Its best batch."""
        self.with_decoding = 1e3 / min(self._measure(size, seconds / 3, decode=True)[1] for size in (1, self.size))
        """Frames a second of a core that decodes each, too."""

    def measure(self, seconds: float) -> tuple[float, float]:
        """Frames a second at its best batch, and processor milliseconds a frame."""
        return self._measure(self.size, seconds)

    def _measure(self, size: int, seconds: float, *, decode: bool = False) -> tuple[float, float]:
        with on_cores(FIRST):
            self._tail.run(self._symbols[:size], self._qualities[:size])
            start, cpu, count = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - start < seconds:
                ready = [self._codec.unpack(f) for f in self._frames[:size]] if decode else self._symbols[:size]
                self._tail.run(ready, self._qualities[:size])
                count += size
            return count / (time.perf_counter() - start), (time.process_time() - cpu) / count * 1e3


def one_row(
    system: System, bundle: Bundle, frames: Sequence[Frame], streams: int, seconds: float, bare: Bare
) -> dict[str, Any]:
    """One server under a closed loop, after a short one to warm up, and the bare loop before and after it."""
    address, pid = system.place
    before = bare.measure(seconds / 2)
    with on_cores(LAST):
        asyncio.run(closed(address, bundle, frames, streams, 0.5, system.kind))
        cpu_s = cpu_seconds(pid)
        result = asyncio.run(closed(address, bundle, frames, streams, seconds, system.kind))
        used_ms = (cpu_seconds(pid) - cpu_s) / result.outcomes["ok"] * 1e3
    after = bare.measure(seconds / 2)
    limit, bare_ms = (sum(pair) / 2 for pair in zip(before, after, strict=True))
    return {
        "server": system.name,
        "streams": streams,
        "frames/s": round(result.goodput),
        "of bare": round(result.goodput / limit, 3),
        "of bare with decoding": round(result.goodput / bare.with_decoding, 3),
        "p50, ms": round(result.percentile(50), 2),
        "p99, ms": round(result.percentile(99), 2),
        "batch": round(result.batches / result.outcomes["ok"], 1),
        "server CPU, ms/frame": round(used_ms, 3),
        "CPU of bare": round(bare_ms / used_ms, 3),
        "bare, frames/s": round(limit),
        "its batch": bare.size,
        "not answered": result.outcomes.total() - result.outcomes["ok"],
    }


def throughput(
    running: Sequence[System],
    bundle: Bundle,
    frames: Sequence[Frame],
    counts: Sequence[int],
    seconds: float,
    bare: Bare,
) -> list[dict[str, Any]]:
    """Closed loop, by number of streams, systems in turns."""
    rows = []
    for streams in counts:
        for system in running:
            try:
                rows.append(one_row(system, bundle, frames, streams, seconds, bare))
            except grpc.aio.AioRpcError as error:
                # Seen with Triton's Python backend, which crashes at times when many streams are open.
                print(f"{system.name} did not survive {streams} streams: {error.details()}", file=sys.stderr)
    return rows


def equal_load(
    running: Sequence[System], bundle: Bundle, frames: Sequence[Frame], seconds: float, bare: Bare
) -> list[dict[str, Any]]:
    """Open loop (Poisson) over 8 streams, the same for all: how soon answers come while nobody is at his limit."""
    rate = LOAD * bare.measure(seconds / 2)[0]
    rows = []
    for system in running:
        total = Result()
        try:
            with on_cores(LAST):
                loads = poisson(system.place[0], bundle, frames, [rate / 8] * 8, seconds, system.kind)
                for result in asyncio.run(loads):
                    total.merge(result)
        except grpc.aio.AioRpcError as error:
            print(f"{system.name} did not survive {rate:.0f} frames a second: {error.details()}", file=sys.stderr)
            continue
        rows.append(
            {
                "server": system.name,
                "offered/s": round(total.sent / total.seconds),
                "answered/s": round(total.goodput),
                "p50, ms": round(total.percentile(50), 2),
                "p99, ms": round(total.percentile(99), 2),
            }
        )
    return rows


def overload(bundle: Bundle, frames: Sequence[Frame], seconds: float) -> list[dict[str, Any]]:
    """Open loop at multiples of the capacity, over 8 streams; then one client that floods beside modest ones."""
    rows = []
    with narrows_server(bundle.root, "--max-wait", "0.1") as (address, pid), on_cores(LAST):

        def capacity() -> float:
            # So few in flight that none is refused: what is answered then is what can be answered.
            return asyncio.run(closed(address, bundle, frames, 4, seconds / 2)).goodput

        def measured(factors: Sequence[float]) -> tuple[list[Result], float, float]:
            """Streams at these multiples of the capacity now; the mean of that before and after, and cores used."""
            before, cpu = capacity(), cpu_seconds(pid)
            results = asyncio.run(poisson(address, bundle, frames, [f * before for f in factors], seconds))
            used = (cpu_seconds(pid) - cpu) / results[0].seconds
            return results, (before + capacity()) / 2, used

        def row(name: str, results: Sequence[Result], share: float, able: float, used: float) -> dict[str, Any]:
            total = Result()
            for result in results:
                total.merge(result)
            return {
                "load": name,
                "capacity/s": round(able),
                "offered/s": round(total.sent / total.seconds),
                "of capacity": round(total.sent / total.seconds / able, 2),
                "answered/s": round(total.goodput),
                "of what was possible": round(total.goodput / (share * able), 3),
                "p50, ms": round(total.percentile(50), 1),
                "p99, ms": round(total.percentile(99), 1),
                "server's cores": round(used, 2),
                "outcomes": dict(total.outcomes),
            }

        capacity()  # to warm up
        for factor in (0.5, 1, 2, 5):
            results, able, used = measured([factor / 8] * 8)
            rows.append(row(f"{factor}× capacity", results, min(1.0, factor), able, used))
        (flood, *modest), able, used = measured([4, *[1 / 20] * 4])
        rows.append(row("one floods at 4×", [flood], 0.8, able, used))
        rows.append(row("beside it, four at 1/20", modest, 0.2, able, used))
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
    names = [subject.name for subject in harness.SUBJECTS]
    parser.add_argument("--subject", nargs="+", default=TAILS, choices=names, help="whose tails")
    parser.add_argument("--one-core", action="store_true", help="keep the servers to the first core")
    parser.add_argument("--only", choices=["throughput", "overload"], help="half of the tables")
    parser.add_argument("--ray", action="store_true", help="Ray Serve too: needs pip install 'narrows[ray]'")
    parser.add_argument("--triton", type=Path, help="virtual environment with nvidia-pytriton: see triton_peer.py")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.only != "overload":
            for subject in options.subject:
                bundle, frames = material(subject, Path(name))
                bare = Bare(bundle, frames, options.seconds)
                with systems(bundle, options.triton, ray=options.ray, one_core=options.one_core) as running:
                    rows = throughput(running, bundle, frames, options.streams, options.seconds, bare)
                    note = f"{subject}; {WINDOW} frames in flight to a stream"
                    note += "; servers on one core" if options.one_core else ""
                    harness.report("Closed loop", rows, as_json=options.json, note=note)
                    rows = equal_load(running, bundle, frames, options.seconds, bare)
                    note = f"{subject}; {LOAD} of the bare loop's throughput, over 8 streams"
                    harness.report("Equal load (Poisson)", rows, as_json=options.json, note=note)
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
