"""One operating point under one load: device processes, looked at until what they say has settled."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import msgspec
import numpy as np

from ..device.emulator import LinkEmulator
from ..device.schedule import parse_link
from ..runtime.errors import InternalError, NarrowsError, from_code
from ..runtime.point import Point
from . import steady
from .lines import DECODER, ENCODER, Ended, Failed, Job, Over, Ready
from .options import BenchOptions, Load
from .result import Step

_LOOK_S = 0.05
_START_S = 120.0
"""A board that takes longer to load its graphs and prove them than this has another problem."""
_GRACE_S = 10.0

INTERRUPTED = "interrupted"
"""Why a step ended that somebody at the terminal did not want to go on."""

Looked = Callable[[float, float], None]
"""Told of the seconds that a step has taken, and of those that it may take."""


class DeviceProcess:
    """A device in a process of its own."""

    def __init__(self, job: Job) -> None:
        command = [sys.executable, "-m", "narrows.bench.worker"]
        # A session of its own: a Ctrl-C at the terminal is the bench's to deal with.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        self.ready = threading.Event()
        """Set when it can begin, and when it never will."""
        self.inputs = 0
        self.frames: list[Ended] = []
        """That ended so far."""
        self.over: Over | None = None
        self.failed: NarrowsError | None = None
        self._reader = threading.Thread(target=self._read, name="narrows-bench-reader", daemon=True)
        self._reader.start()
        self._tell(ENCODER.encode(job))

    def go(self) -> None:
        """Begin with the load."""
        self._tell(b"go")

    def stop(self) -> None:
        """Take no further frame."""
        self._tell(b"stop")

    def wait(self, timeout_s: float) -> None:
        """Wait until it has ended; kill it where it does not."""
        self._reader.join(timeout_s)
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _tell(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended; what it said tells why
            self._process.stdin.write(line + b"\n")

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            # Read as a file of its own: a pipe without a buffer would be read byte by byte.
            with open(self._process.stdout.fileno(), "rb", closefd=False) as lines:
                for line in lines:
                    self._take(DECODER.decode(line))
        except msgspec.DecodeError as error:
            self.failed = InternalError(f"a device process said what it should not ({error})")
        if self.over is None and self.failed is None:
            self.failed = InternalError(
                f"a device process ended with {self._process.wait()}; it may have said why above"
            )
        self.ready.set()

    def _take(self, said: Ready | Ended | Over | Failed) -> None:
        match said:
            case Ended():
                self.frames.append(said)
            case Ready():
                self.inputs = said.inputs
                self.ready.set()
            case Over():
                self.over = said
            case Failed():
                self.failed = from_code(said.code, said.text)


@dataclass(frozen=True, slots=True)
class Ran:
    """A step, and what else its devices said."""

    step: Step
    inputs: int
    meter: str | None


@dataclass(slots=True)
class Bench:
    """What all steps have in common."""

    options: BenchOptions
    address: str
    alive: Callable[[], str]
    """Why the server is gone, or nothing."""
    truth: Sequence[int | None] = ()
    """The whole model's best class of every input; empty where nobody knows."""

    def run(self, point: Point, load: Load, looked: Looked) -> Ran:
        """One step.

        Raises:
            NarrowsError: what the devices end in before any frame has ended.
        """
        options = self.options
        with ExitStack() as stack:
            devices = [self._start(point, load, number, stack) for number in range(options.devices)]
            for device in devices:
                if not device.ready.wait(_START_S):
                    raise InternalError(f"a device process was not ready within {_START_S:.0f} s")
                if device.failed is not None:
                    raise device.failed
            for device in devices:
                device.go()
            began = time.monotonic()
            try:
                elapsed_s, settled, trouble = self._look(devices, load, began, looked)
            except KeyboardInterrupt:
                elapsed_s, settled, trouble = time.monotonic() - began, False, INTERRUPTED
            for device in devices:
                device.stop()
            for device in devices:
                device.wait(options.timeout_s + _GRACE_S)
        return self._ran(devices, point, load, elapsed_s, settled, trouble)

    def _start(self, point: Point, load: Load, number: int, stack: ExitStack) -> DeviceProcess:
        options, address = self.options, self.address
        if options.link is not None:
            emulator = LinkEmulator(address, parse_link(options.link), seed=options.seed + number)
            address = stack.enter_context(emulator).address
        job = Job(
            bundle=str(options.bundle),
            address=address,
            source=options.source,
            point=point,
            concurrency=load.concurrency,
            rate=None if load.rate is None else load.rate / options.devices,
            seed=options.seed + number,
            window=options.window,
            timeout_s=options.timeout_s,
            session=options.session,
            security=options.security,
            meter=number == 0,
        )
        device = DeviceProcess(job)
        stack.callback(device.wait, 0.0)  # whatever happens, nothing is left running
        return device

    def _look(
        self, devices: Sequence[DeviceProcess], load: Load, began: float, looked: Looked
    ) -> tuple[float, bool, str]:
        """Wait for the step to settle: how long it took, whether it has, and what ended it otherwise."""
        pace = self.options.pace
        next_s = (steady.PARTS + 1) * pace.window_s
        while True:
            time.sleep(_LOOK_S)
            elapsed_s = time.monotonic() - began
            looked(elapsed_s, pace.max_s)
            failed = next((str(device.failed) for device in devices if device.failed is not None), "")
            if trouble := self.alive() or failed:
                return elapsed_s, False, trouble
            if elapsed_s >= min(next_s, pace.max_s):
                frames = [frame for device in devices for frame in list(device.frames)]
                if steady.settled(frames, elapsed_s, pace.tolerance, open_loop=load.rate is not None):
                    return elapsed_s, True, ""
                if elapsed_s >= pace.max_s:
                    return elapsed_s, False, ""
                next_s += pace.window_s

    def _ran(
        self, devices: Sequence[DeviceProcess], point: Point, load: Load, elapsed_s: float, settled: bool, trouble: str
    ) -> Ran:
        everything = [frame for device in devices for frame in device.frames]
        frames = steady.measured(everything, elapsed_s)
        good = [frame for frame in frames if frame.code == "ok"]
        over = devices[0].over
        answered = sum(frame.code == "ok" for frame in everything)
        seconds = (1 - steady.WARM_UP) * elapsed_s
        throughput = len(good) / seconds
        arrived = sum(steady.WARM_UP * elapsed_s <= frame.due_s < elapsed_s for frame in everything)
        step = Step(
            point=point,
            load=load,
            devices=len(devices),
            settled=settled,
            seconds=seconds,
            frames=len(frames),
            outcomes=dict(Counter(frame.code for frame in frames).most_common()),
            throughput=throughput,
            offered=load.rate if load.rate is not None else arrived / seconds,
            in_flight=throughput * float(np.mean([frame.latency_ms for frame in good])) / 1000 if good else 0.0,
            stages=steady.stages(good),
            payload_bytes=_mean([frame.payload_bytes for frame in good]),
            wire_bytes=_mean([frame.wire_bytes for frame in good]),
            agreement=self._agreement(good),
            joules=over.joules / answered if over is not None and over.joules is not None and answered else None,
            trouble=trouble,
        )
        return Ran(step, devices[0].inputs, over.meter if over is not None else None)

    def _agreement(self, frames: Sequence[Ended]) -> float | None:
        pairs = [(frame.top, self.truth[frame.input]) for frame in frames if self.truth and frame.top is not None]
        return _mean([made == true for made, true in pairs]) if pairs else None


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
