"""A load of frames for the serving benchmarks: real frames of a real bundle, many streams, closed or open loop."""

from __future__ import annotations

import asyncio
import os
import random
import struct
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import numpy as np
from narrows.protos import oip_pb2, split_pb2_grpc
from narrows.protos import split_pb2 as pb
from narrows.runtime.bundle import Bundle
from narrows.runtime.codec import labels
from narrows.runtime.frame import Frame, FrameCodec
from narrows.runtime.halves import Head
from narrows.runtime.wire import frame_to_wire


def make_frames(bundle: Bundle, pictures: Sequence[np.ndarray], quality: int | None = None) -> list[Frame]:
    """Coded frames of pictures that have the head's size; the best quality where none is said."""
    cut = bundle.manifest.cuts[0]
    codec, head = FrameCodec(bundle, 0), Head(bundle, cut)
    chosen = len(cut.qualities) - 1 if quality is None else quality
    made = enumerate(pictures)
    return [codec.pack(i, head.run([picture], chosen).symbols, chosen, labels()[0]) for i, picture in made]


@dataclass
class Result:
    """What became of a load."""

    sent: int = 0
    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    """Of the frames that were answered."""
    outcomes: Counter[str] = field(default_factory=Counter)
    batches: int = 0
    """Sum of the batch sizes that the answers tell of."""
    wrong: int = 0
    """Answers that are not the one that the frame must get."""

    @property
    def goodput(self) -> float:
        """Answers a second."""
        return self.outcomes["ok"] / self.seconds

    def percentile(self, share: float) -> float:
        """Of the latencies, in milliseconds."""
        return float(np.percentile(self.latencies_ms, share)) if self.latencies_ms else float("nan")

    def merge(self, other: Result) -> None:
        """Add another stream's result; streams run at the same time, so seconds are not summed."""
        self.sent += other.sent
        self.seconds = max(self.seconds, other.seconds)
        self.latencies_ms += other.latencies_ms
        self.outcomes += other.outcomes
        self.batches += other.batches
        self.wrong += other.wrong


class Stream:
    """One stream of a load on a connection of its own."""

    def __init__(self, address: str, bundle: Bundle, frames: Sequence[Frame], expected: Sequence[int] | None) -> None:
        self._bundle = bundle
        self._frames = [frame_to_wire(frame) for frame in frames]
        self._expected = expected
        self._channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._sent_s: dict[int, float] = {}
        self._next = 0
        self._read: deque[pb.Outcome] = deque()
        self.result = Result()

    async def open(self) -> None:
        """Connect and greet."""
        self._call = split_pb2_grpc.SplitInferenceStub(self._channel).Stream()
        hello = pb.Hello(
            protocol=1,
            model=self._bundle.manifest.name,
            bundle=self._bundle.digest,
            coders=labels(),
            answer=pb.Answer(form=pb.Answer.TOP, top=1),
            several=True,
        )
        await self._call.write(pb.ClientMessage(hello=hello))
        self.in_flight = (await self._call.read()).welcome.max_in_flight

    async def send(self, deadline_ms: int = 0) -> None:
        """Send the next frame."""
        frame = self._frames[self._next % len(self._frames)]
        frame.id, frame.deadline_ms = self._next, deadline_ms
        self._sent_s[self._next] = time.perf_counter()
        self._next += 1
        self.result.sent += 1
        await self._call.write(pb.ClientMessage(frame=frame))

    async def receive(self) -> int:
        """Take one outcome and count it; milliseconds after which another try has a chance, where it says so."""
        while not self._read:
            self._read += outcomes_in(await self._call.read())
        return self._count(self._read.popleft())

    def _count(self, outcome: pb.Outcome) -> int:
        latency_ms = (time.perf_counter() - self._sent_s.pop(outcome.id)) * 1e3
        if outcome.HasField("error"):
            self.result.outcomes[outcome.error.code] += 1
            return outcome.error.retry_ms
        self.result.outcomes["ok"] += 1
        self.result.latencies_ms.append(latency_ms)
        self.result.batches += outcome.timing.batch
        if self._expected is not None and outcome.top[0].index != self._expected[outcome.id % len(self._frames)]:
            self.result.wrong += 1
        return 0

    async def closed_loop(self, window: int, seconds: float) -> None:
        """Keep `window` frames in flight for so long, then wait for those that are left."""
        start = time.perf_counter()
        for _ in range(window):
            await self.send()
        while time.perf_counter() - start < seconds:
            if (retry_ms := await self.receive()) > 0:
                await asyncio.sleep(retry_ms / 1e3)  # as a device does: asking again at once is a load of its own
            await self.send()
        while self._sent_s:
            await self.receive()
        self.result.seconds = time.perf_counter() - start

    async def open_loop(self, rate: float, seconds: float, deadline_ms: int, seed: int) -> None:
        """Send at random times, `rate` a second on average (Poisson), whatever comes back; then wait for the rest."""
        rng = random.Random(seed)
        start = time.perf_counter()
        reader = asyncio.create_task(self._receive_all())
        due = start
        while (due := due + rng.expovariate(rate)) < start + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await self.send(deadline_ms)
        self.result.seconds = time.perf_counter() - start
        await self._call.done_writing()
        await reader

    async def _receive_all(self) -> None:
        while (message := await self._call.read()) is not grpc.aio.EOF:
            self._count_all(message)

    def _count_all(self, message: pb.ServerMessage) -> None:
        for outcome in outcomes_in(message):
            self._count(outcome)

    def cancel(self) -> None:
        """Break the stream off, whatever is in flight; `open` begins another on the same connection."""
        self._call.cancel()

    async def close(self) -> None:
        """End the stream and its connection."""
        self._call.cancel()
        await self._channel.close()


def outcomes_in(message: pb.ServerMessage) -> Sequence[pb.Outcome]:
    """What one message of the server brings."""
    return message.outcomes.outcomes if message.HasField("outcomes") else (message.outcome,)


class OipStream(Stream):
    """The same load over the Open Inference Protocol's stream, for any server that speaks it."""

    model = "net"

    async def open(self) -> None:
        """Connect."""
        method = self._channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            oip_pb2.ModelInferRequest.SerializeToString,
            oip_pb2.ModelStreamInferResponse.FromString,
        )
        self._call = method()

    async def send(self, deadline_ms: int = 0) -> None:
        """Send the next frame."""
        frame = self._frames[self._next % len(self._frames)]
        request = oip_pb2.ModelInferRequest(model_name=self.model, id=str(self._next))
        request.inputs.add(name="FRAME", datatype="BYTES", shape=[1, 1])
        element = pb.InferRequest(bundle=self._bundle.digest, frame=frame).SerializeToString()
        request.raw_input_contents.append(struct.pack("<I", len(element)) + element)
        self._sent_s[self._next] = time.perf_counter()
        self._next += 1
        self.result.sent += 1
        await self._call.write(request)

    async def receive(self) -> int:
        """Take one response and count it."""
        self._count_all(await self._call.read())
        return 0

    def _count_all(self, message: oip_pb2.ModelStreamInferResponse) -> None:
        latency_ms = (time.perf_counter() - self._sent_s.pop(int(message.infer_response.id))) * 1e3
        if message.error_message:
            self.result.outcomes["error"] += 1
            return
        self.result.outcomes["ok"] += 1
        self.result.latencies_ms.append(latency_ms)


class NarrowsOipStream(OipStream):
    """To our own server, whose split models have names of their own."""

    async def open(self) -> None:
        """Connect."""
        self.model = f"{self._bundle.manifest.name}.split"
        await super().open()


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and its children so far, all threads."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:  # noqa: PTH123
        fields = file.read().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _children(task)]
    return own + sum(cpu_seconds(child) for child in children)


def _children(task: Path) -> list[str]:
    return (task / "children").read_text().split()


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
