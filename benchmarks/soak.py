"""A long load with bad manners: does memory stay flat, does anything stay behind, is every reply the right one?

    python benchmarks/soak.py [--frames 1000000] [--cancelled 50000] [--json]

Client processes come and go; each streams frames and checks every reply against what its frame must give, and opens
streams that it cancels with frames in flight. Every twentieth client is killed while frames of all its streams are on
the way. The server's resident memory, file descriptors and asyncio tasks are read all along. The tail is the last of a
ResNet-20, so that what is tried is the server and not the graph.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
from load import make_frames, resident_bytes
from narrows.runtime.bundle import Bundle
from narrows.runtime.frame import Frame, FrameCodec
from narrows.runtime.halves import Tail
from narrows.runtime.images import fit, load_image
from narrows.runtime.session import SessionOptions
from narrows.runtime.wire import frame_to_wire
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from soak_client import Life, command, write_frames

SUBJECT = "resnet20-cifar10"
AT = "/layer3/layer3.2/Relu_1_output_0"
PICTURES = 64
CLIENTS = 2
"""Client processes at a time."""
FRAMES = 5_000
"""Frames of one client process, over its streams."""
KILLED = 20
"""Every so many-th client is killed."""
LOOK_S = 0.25
"""Between looks at the clients; the server is looked at every fourth time."""


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

    def line(self, total: dict[str, int]) -> str:
        """How it stands."""
        served, resident = self.samples[-1]
        return (
            f"{served:,} served, {total['wrong']} wrong, {total['clients']} clients, {total['killed']} killed, "
            f"{resident / 1e6:.0f} MB, {self.slope():+.2f} bytes a frame"
        )

    def slope(self) -> float:
        """Bytes a frame, over the second half of the samples."""
        late = np.array(self.samples[len(self.samples) // 2 :], float)
        return float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) if len(late) > 2 else float("nan")


@contextmanager
def watched_server(bundle: Bundle) -> Iterator[Server]:
    """`narrows serve` with its status page."""
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


def soak(server: Server, life: Life, frames: int, cancelled: int) -> dict[str, int]:
    """Run clients until `frames` have been sent; what they counted."""
    total = {"sent": 0, "answered": 0, "refused": 0, "wrong": 0, "clients": 0, "killed": 0, "failed": 0}
    clients = -(-frames // FRAMES)
    each = replace(life, cancelled=round(cancelled / clients))
    running: list[subprocess.Popen[str]] = []
    columns = (TextColumn("{task.description}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=1) as progress:
        task = progress.add_task("", total=frames)
        for looks in range(sys.maxsize):
            while len(running) < CLIENTS and total["clients"] < clients:
                total["clients"] += 1
                number = total["clients"]
                dies_at = random.randrange(FRAMES // 16, FRAMES // 5) if number % KILLED == 0 else 0
                words = command(replace(each, seed=number, dies_at=dies_at))
                running.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
            if not running:
                return total
            time.sleep(LOOK_S)
            for process in [process for process in running if process.poll() is not None]:
                running.remove(process)
                _note(process, total)
            if looks % 4 == 0:
                server.sample()
                progress.update(task, completed=server.samples[-1][0], description=server.line(total))
                if not progress.console.is_terminal and len(server.samples) % 10 == 0:
                    print(server.line(total), file=sys.stderr, flush=True)
    raise AssertionError("unreachable")


def _note(process: subprocess.Popen[str], total: dict[str, int]) -> None:
    said, _ = process.communicate()
    if process.returncode == 0:
        for key, value in json.loads(said).items():
            total[key] += value
    else:
        total["killed" if process.returncode == -signal.SIGKILL else "failed"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--cancelled", type=int, default=50_000, help="streams that are cancelled")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    subject = replace(next(subject for subject in harness.SUBJECTS if subject.name == SUBJECT), at=AT)
    with tempfile.TemporaryDirectory() as name:
        bundle = subject.cut(Path(name))
        preprocess = bundle.manifest.preprocess
        assert preprocess is not None
        pictures = [fit(load_image(p), preprocess) for p in subject.write_pictures(Path(name) / "pictures", PICTURES)]
        frames = make_frames(bundle, pictures)
        coded = Path(name) / "frames.json"
        write_frames(coded, [frame_to_wire(frame) for frame in frames], expected_classes(bundle, frames))
        with watched_server(bundle) as server:
            before = (server.status()["tasks"], server.descriptors())
            life = Life(server.address, str(bundle.root), str(coded), FRAMES, cancelled=0, dies_at=0, seed=0)
            start = time.monotonic()
            total = soak(server, life, options.frames, options.cancelled)
            seconds = time.monotonic() - start
            time.sleep(2)
            server.sample()
            row: dict[str, Any] = {
                **total,
                "seconds": round(seconds),
                "served/s": round(server.samples[-1][0] / seconds),
                "resident, MB": f"{server.samples[0][1] / 1e6:.0f} … {server.samples[-1][1] / 1e6:.0f}",
                "slope, bytes/frame": round(server.slope(), 2),
                "tasks": f"{before[0]} … {server.status()['tasks']}",
                "descriptors": f"{before[1]} … {server.descriptors()}",
                "streams left": server.status()["streams"],
            }
    harness.report("Soak", [row], as_json=options.json)


if __name__ == "__main__":
    main()
