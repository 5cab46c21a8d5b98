"""A long load with bad manners: does memory stay flat, does anything stay behind, is every reply the right one?

    python benchmarks/soak.py [--frames 1000000] [--cancelled 50000] [--json]

Client processes come and go; each streams frames and checks every reply against what its frame must give, and opens
streams that it cancels with frames in flight. Every twentieth client is killed in the middle of it. The server's
resident memory, file descriptors and asyncio tasks are read all along.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import numpy as np
from load import Stream, make_frames, resident_bytes
from narrows.runtime.bundle import Bundle
from narrows.runtime.frame import Frame, FrameCodec
from narrows.runtime.halves import Tail
from narrows.runtime.images import fit, load_image
from narrows.runtime.session import SessionOptions

SUBJECT = "resnet20-cifar10"
CLIENTS = 2
"""Client processes at a time."""
FRAMES = 5_000
"""Frames of one client process, over its streams."""
STREAMS = 4
KILLED = 20
"""Every so many-th client is killed."""


async def client(address: str, bundle: Bundle, pictures: Path, cancelled: int, seed: int) -> dict[str, int]:
    """One client's life."""
    preprocess = bundle.manifest.preprocess
    assert preprocess is not None
    frames = make_frames(bundle, [fit(load_image(path), preprocess) for path in sorted(pictures.iterdir())])
    expected = expected_classes(bundle, frames)
    rng = random.Random(seed)

    async def well_behaved() -> Stream:
        stream = Stream(address, bundle, frames, expected)
        await stream.open()
        for _ in range(8):
            await stream.send()
        while stream.result.sent < FRAMES // STREAMS:
            await stream.receive()
            await stream.send()
        for _ in range(8):
            await stream.receive()
        await stream.close()
        return stream

    async def ill_mannered() -> None:
        for _ in range(cancelled):
            stream = Stream(address, bundle, frames, None)
            await stream.open()
            for _ in range(rng.randrange(6)):
                await stream.send()
            await stream.close()

    *streams, _ = await asyncio.gather(*(well_behaved() for _ in range(STREAMS)), ill_mannered())
    results = [stream.result for stream in streams if stream is not None]
    return {
        "sent": sum(result.sent for result in results),
        "answered": sum(result.outcomes["ok"] for result in results),
        "refused": sum(result.outcomes.total() - result.outcomes["ok"] for result in results),
        "wrong": sum(result.wrong for result in results),
    }


def expected_classes(bundle: Bundle, frames: Sequence[Frame]) -> list[int]:
    """The best class that the tail alone gives each frame."""
    codec, tail = FrameCodec(bundle, 0), Tail(bundle, bundle.manifest.cuts[0], SessionOptions(threads=1))
    outputs = (tail.run([codec.unpack(frame)], [frame.quality])[0] for frame in frames)
    return [int(np.argmax(next(iter(output.values())))) for output in outputs]


@dataclass
class Server:
    """The server's process, watched from outside."""

    address: str
    metrics: str
    pid: int
    samples: list[tuple[int, int]] = field(default_factory=list)
    """Frames answered, resident bytes."""

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{self.metrics}/status.json", timeout=10) as answer:
            status: dict[str, Any] = json.load(answer)
        return status

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def sample(self) -> None:
        self.samples.append((self.status()["outcomes"].get("ok", 0), resident_bytes(self.pid)))

    def slope(self) -> float:
        """Bytes a frame, over the second half of the samples."""
        late = np.array(self.samples[len(self.samples) // 2 :], float)
        return float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) if len(late) > 2 else float("nan")


@contextmanager
def watched_server(bundle: Bundle) -> Iterator[Server]:
    """`narrows serve` with its status page."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "narrows", "serve", str(bundle.root), "--port", "0", "--threads", "1", "--json"]
    with subprocess.Popen([*command, "--metrics-port", str(port)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Server(json.loads(process.stdout.readline())["address"], f"127.0.0.1:{port}", process.pid)
        finally:
            process.terminate()


def soak(server: Server, bundle: Bundle, pictures: Path, frames: int, cancelled: int) -> dict[str, int]:
    """Run clients until `frames` have been sent; what they counted."""
    total = {"sent": 0, "answered": 0, "refused": 0, "wrong": 0, "clients": 0, "killed": 0, "failed": 0}
    each = max(1, round(cancelled * FRAMES / frames))
    running: list[tuple[subprocess.Popen[str], float]] = []
    while total["clients"] * FRAMES < frames or running:
        while len(running) < CLIENTS and total["clients"] * FRAMES < frames:
            total["clients"] += 1
            command = [sys.executable, __file__, "--client", server.address, str(bundle.root), str(pictures), str(each)]
            process = subprocess.Popen([*command, str(total["clients"])], stdout=subprocess.PIPE, text=True)
            dies = total["clients"] % KILLED == 0
            running.append((process, time.monotonic() + random.uniform(3, 6) if dies else float("inf")))
        time.sleep(1)
        server.sample()
        for entry in list(running):
            process, dies_s = entry
            if time.monotonic() > dies_s:
                process.kill()
                total["killed"] += 1
            if process.poll() is None and time.monotonic() <= dies_s:
                continue
            running.remove(entry)
            said, _ = process.communicate()
            if process.returncode == 0:
                for key, value in json.loads(said).items():
                    total[key] += value
            elif dies_s == float("inf"):
                total["failed"] += 1
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--cancelled", type=int, default=50_000, help="streams that are cancelled")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--client", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        address, root, pictures, cancelled, seed = options.client
        print(json.dumps(asyncio.run(client(address, Bundle.open(root), Path(pictures), int(cancelled), int(seed)))))
        return
    subject = next(subject for subject in harness.SUBJECTS if subject.name == SUBJECT)
    with tempfile.TemporaryDirectory() as name:
        bundle = subject.cut(Path(name))
        subject.write_pictures(Path(name) / "pictures", 64)
        with watched_server(bundle) as server:
            before = (server.status()["tasks"], server.descriptors())
            total = soak(server, bundle, Path(name) / "pictures", options.frames, options.cancelled)
            time.sleep(2)
            row: dict[str, Any] = {
                **total,
                "resident, MB": f"{server.samples[0][1] / 1e6:.0f} … {server.samples[-1][1] / 1e6:.0f}",
                "slope, bytes/frame": round(server.slope(), 2),
                "tasks": f"{before[0]} … {server.status()['tasks']}",
                "descriptors": f"{before[1]} … {server.descriptors()}",
                "streams left": server.status()["streams"],
            }
    harness.report("Soak", [row], as_json=options.json)


if __name__ == "__main__":
    main()
