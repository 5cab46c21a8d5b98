"""One client process of soak.py: it checks every reply, leaves streams with frames in flight, and may be killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from load import Stream
from narrows.protos import split_pb2 as pb
from narrows.runtime.bundle import Bundle
from narrows.runtime.frame import Frame
from narrows.runtime.wire import frame_from_wire

STREAMS = 4
WINDOW = 8
"""Frames of a stream in flight."""


@dataclass(frozen=True)
class Life:
    """What one client does."""

    address: str
    root: str
    """The bundle."""
    frames_file: str
    """Frames with the class that each must get, as `write_frames` leaves them."""
    frames: int
    """To send, over all streams."""
    cancelled: int
    """Streams to leave with frames in flight."""
    dies_at: int
    """Frame of its first stream at which it is killed; 0 for none."""
    seed: int


def write_frames(path: Path, frames: list[pb.Frame], expected: list[int]) -> None:
    """Coded frames, and the class that each must get, for clients that have no graphs."""
    path.write_text(json.dumps([[f.SerializeToString().hex(), e] for f, e in zip(frames, expected, strict=True)]))


def _read_frames(path: Path) -> tuple[list[Frame], list[int]]:
    pairs = json.loads(path.read_text())
    frames = [frame_from_wire(pb.Frame.FromString(bytes.fromhex(coded))) for coded, _ in pairs]
    return frames, [expected for _, expected in pairs]


async def live(life: Life) -> dict[str, int]:
    """A client's life; what it counted."""
    bundle = Bundle.open(life.root)
    frames, expected = _read_frames(Path(life.frames_file))
    rng = random.Random(life.seed)

    async def well_behaved(dies_at: int) -> Stream:
        stream = Stream(life.address, bundle, frames, expected)
        await stream.open()
        for _ in range(WINDOW):
            await stream.send()
        while stream.result.sent < life.frames // STREAMS:
            await stream.receive()
            await stream.send()
            if stream.result.sent == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)  # with a window of frames of every stream on the way
        for _ in range(WINDOW):
            await stream.receive()
        await stream.close()
        return stream

    async def ill_mannered() -> None:
        stream = Stream(life.address, bundle, frames, None)
        for _ in range(life.cancelled):
            await stream.open()
            for _ in range(rng.randrange(6)):
                await stream.send()
            stream.cancel()
        await stream.close()

    *streams, _ = await asyncio.gather(
        *(well_behaved(0 if number else life.dies_at) for number in range(STREAMS)), ill_mannered()
    )
    results = [stream.result for stream in streams if stream is not None]
    return {
        "sent": sum(result.sent for result in results),
        "answered": sum(result.outcomes["ok"] for result in results),
        "refused": sum(result.outcomes.total() - result.outcomes["ok"] for result in results),
        "wrong": sum(result.wrong for result in results),
    }


def command(life: Life) -> list[str]:
    """What starts it."""
    return [sys.executable, __file__, json.dumps(asdict(life))]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(live(Life(**json.loads(sys.argv[1]))))))
