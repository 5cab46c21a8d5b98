"""The device's process: `python -m narrows.bench.worker`.

It reads its job, a line of JSON, from stdin, and says `Ready` once its graphs are proven and warm. At the next line it
begins, and says `Ended` of every frame; at the one after that (or when its starter is gone) it takes no further frame,
lets those under way end, and says `Over`.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import msgspec

from ..device import Device, DeviceOptions, Input
from ..device.energy import Energy, find_meter
from ..device.outcome import Outcome
from ..device.policies import Always, Static
from ..runtime.answer import Form, Wanted
from ..runtime.bundle import Bundle
from ..runtime.errors import NarrowsError, ServerUnavailableError
from ..runtime.link import LinkOptions
from ..runtime.manifest import Half
from .inputs import read_inputs
from .lines import ENCODER, Ended, Failed, Job, Over, Ready, Said

_WARM_UP = 2
_FLUSH_S = 0.05
_DOWN_S = 0.01
"""Between two frames that fail at once because the server is not there: nobody wants a million of them."""


def device_options(job: Job) -> DeviceOptions:
    """How the device works."""
    point = job.point
    split = point.mode == "split"
    return DeviceOptions(
        cut=point.cut,
        quality=point.quality if split else None,
        wanted=Wanted(Form.TOP, top=1),
        policy=Static() if split else Always(point),
        offload=point if point.mode == "offload" else None,
        # What no server answers is to be counted, and not made up for.
        fallback="local" if point.mode == "local" else "none",
        timeout_s=job.timeout_s,
        window=job.window if job.concurrency is None else job.concurrency,
        session=job.session,
        link=LinkOptions(security=job.security),
    )


@dataclass
class Arrivals:
    """Inputs when they are due, and when each was due and begun. Seconds from the start of the load."""

    inputs: list[Input]
    rate: float | None
    seed: int
    stop: threading.Event = field(default_factory=threading.Event)
    due_s: dict[int, float] = field(default_factory=dict)
    begun_s: dict[int, float] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Input]:
        draw, began = random.Random(self.seed), time.monotonic()
        due = 0.0
        for number in count():
            if self.rate is None:
                due = time.monotonic() - began
            else:
                due += draw.expovariate(self.rate)
                self.stop.wait(max(0.0, due - (time.monotonic() - began)))
            if self.stop.is_set():
                return
            self.due_s[number] = due
            self.begun_s[number] = time.monotonic() - began
            yield self.inputs[number % len(self.inputs)]

    def ended(self, outcome: Outcome) -> Ended:
        """What is told of a frame; it is forgotten here."""
        begun_s = self.begun_s.pop(outcome.id)
        return Ended(
            due_s=round(self.due_s.pop(outcome.id), 6),
            begun_s=round(begun_s, 6),
            done_s=round(begun_s + outcome.ms["total"] / 1000, 6),
            input=outcome.id % len(self.inputs),
            code=outcome.outcome,
            mode=outcome.point.mode,
            top=outcome.top[0].index if outcome.top else None,
            payload_bytes=outcome.payload_bytes,
            wire_bytes=outcome.wire_bytes,
            ms={stage: round(took, 4) for stage, took in outcome.ms.items()},
        )


def work(job: Job) -> None:
    """Put the load on; see the module's docstring."""
    bundle = Bundle.open(Path(job.bundle), Half.DEVICE)
    arrivals = Arrivals(read_inputs(bundle, job.source), job.rate, job.seed)
    meter = find_meter() if job.meter else None
    energy = Energy(meter) if meter is not None else None
    with Device(bundle, job.address, device_options(job)) as device:
        device.warm_up(arrivals.inputs[:_WARM_UP])
        _say(Ready(len(arrivals.inputs)))
        if not sys.stdin.readline():
            return
        threading.Thread(target=_stop_when_told, args=(arrivals.stop,), daemon=True).start()
        with energy or nullcontext():
            flushed = 0.0
            for outcome in device.stream(arrivals):
                late = time.monotonic() - flushed > _FLUSH_S
                _say(arrivals.ended(outcome), flush=late)
                flushed = time.monotonic() if late else flushed
                if isinstance(outcome.error, ServerUnavailableError):
                    time.sleep(_DOWN_S)
        _say(Over(meter.name if meter else None, energy.joules if energy else None))


def _stop_when_told(stop: threading.Event) -> None:
    sys.stdin.readline()
    stop.set()


def _say(what: Said, *, flush: bool = True) -> None:
    print(ENCODER.encode(what).decode(), flush=flush)


def main() -> None:
    """Do the job on stdin; what goes wrong is the last line."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    logging.basicConfig(level=logging.ERROR)
    try:
        work(msgspec.json.decode(sys.stdin.readline(), type=Job))
    except NarrowsError as error:
        _say(Failed(error.code, str(error)))
    except BrokenPipeError:  # the starter is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
