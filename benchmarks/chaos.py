"""How soon do answers come again after a fault, and does every frame end once?

    python benchmarks/chaos.py [--faults 20] [--json]

ResNet-20 on CIFAR pictures; a device in this process streams all the time, and servers are processes of their own. In
turn the server is killed and another one started in its place, the link's connections are cut, and the link goes
silent for three seconds while the connection stands (a black hole). Recovery is from the moment when an answer was
possible again (the new server listens; the connections are cut; the link carries again) to the next answer.
"""

from __future__ import annotations

import argparse
import itertools
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import harness
import numpy as np
from narrows.device import Device, DeviceOptions
from narrows.device.emulator import LinkEmulator
from narrows.device.schedule import parse_link, trace
from narrows.runtime.bundle import Bundle
from narrows.runtime.session import SessionOptions
from narrows.server_process import server_process

SUBJECT = next(subject for subject in harness.SUBJECTS if subject.name == "resnet20-cifar10")
SILENT_S, PERIOD_S = 3.0, 6.0
PAUSE_S = 0.02
"""Between frames."""
STEADY = 20
"""Answers between two faults."""
LINK = "20mbit,5ms"


class Answers:
    """When a server's answers came."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def next(self) -> float:
        """The moment of the next answer."""
        seen = self._device.counters.replies
        while self._device.counters.replies == seen:
            time.sleep(0.0005)
        return time.monotonic()

    def some(self) -> None:
        """Wait for work to be as usual again."""
        seen = self._device.counters.replies
        while self._device.counters.replies < seen + STEADY:
            time.sleep(0.005)


Fault = Callable[[Answers, int], float]
"""Breaks something for the n-th time, and says how many seconds after an answer was possible again one came."""


class Mortal:
    """A server process that can be killed and started again on its port."""

    def __init__(self, bundle: Bundle) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._bundle = bundle
        self._stack = ExitStack()
        self.address = f"127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Come back when it listens."""
        made = server_process(self._bundle.root, "--port", self._port, "--threads", 1)
        self._process = self._stack.enter_context(made).process

    def kill(self) -> None:
        """As a power cut would."""
        self._process.kill()
        self._stack.close()


@contextmanager
def killed(bundle: Bundle) -> Iterator[tuple[str, Fault]]:
    """A server is killed, and another one started in its place."""
    server = Mortal(bundle)

    def fault(answers: Answers, _n: int) -> float:
        server.kill()
        server.start()
        ready = time.monotonic()
        return answers.next() - ready

    try:
        yield server.address, fault
    finally:
        server.kill()


@contextmanager
def cut(bundle: Bundle) -> Iterator[tuple[str, Fault]]:
    """Connections break in the middle of whatever passes."""
    with harness.server(bundle.root) as address, LinkEmulator(address, parse_link(LINK)) as link:

        def fault(answers: Answers, _n: int) -> float:
            link.cut()
            broken = time.monotonic()
            return answers.next() - broken

        yield link.address, fault


@contextmanager
def silent(bundle: Bundle, faults: int) -> Iterator[tuple[str, Fault]]:
    """Nothing passes any more, and nobody is told."""
    moments = [(PERIOD_S * n, LINK.split(",")) for n in range(faults + 1)]
    gaps = [(PERIOD_S * (n + 1) - SILENT_S, ["0mbit"]) for n in range(faults)]
    schedule = trace(sorted(moments + gaps))
    with harness.server(bundle.root) as address, LinkEmulator(address, schedule) as link:
        began = time.monotonic()

        def fault(answers: Answers, n: int) -> float:
            back = began + PERIOD_S * (n + 1)
            time.sleep(max(0.0, back - time.monotonic()))
            return answers.next() - back

        yield link.address, fault


def measure(bundle: Bundle, pictures: list[Any], place: Any, faults: int) -> dict[str, Any]:
    """Stream through the faults."""
    over, recovered = threading.Event(), list[float]()
    options = DeviceOptions(session=SessionOptions(threads=1), timeout_s=60)
    before = (threading.active_count(), open_descriptors())
    with place as (address, fault):
        device = Device(bundle, address, options)
        with device:
            answers = Answers(device)

            def break_things() -> None:
                for n in range(faults):
                    answers.some()
                    recovered.append(fault(answers, n))
                answers.some()
                over.set()

            breaker = threading.Thread(target=break_things)
            breaker.start()
            outcomes = list(
                device.stream(itertools.takewhile(lambda _: not over.wait(PAUSE_S), itertools.cycle(pictures)))
            )
            breaker.join()
    after = settled(before)
    ids = Counter(outcome.id for outcome in outcomes)
    return {
        "faults": len(recovered),
        "frames": len(outcomes),
        "answered": sum(outcome.error is None for outcome in outcomes),
        "lost": max(ids) + 1 - len(ids),
        "ended twice": sum(count > 1 for count in ids.values()),
        "recovery p50, s": float(np.median(recovered)),
        "p99, s": float(np.percentile(recovered, 99)),
        "threads": f"{before[0]} … {after[0]}",
        "descriptors": f"{before[1]} … {after[1]}",
    }


def open_descriptors() -> int:
    """Files and sockets that this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def settled(before: tuple[int, int]) -> tuple[int, int]:
    """Threads and descriptors once gRPC has closed what nobody uses any more, or after five seconds."""
    for _ in range(50):
        now = (threading.active_count(), open_descriptors())
        if now <= before:
            break
        time.sleep(0.1)
    return now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20, help="of each kind")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle, pictures = harness.cut_with_inputs(SUBJECT, folder, 32)
        cases = {
            "server killed": lambda: killed(bundle),
            "connections cut": lambda: cut(bundle),
            f"link silent for {SILENT_S:.0f} s": lambda: silent(bundle, options.faults),
        }
        rows = [{"fault": what, **measure(bundle, pictures, make(), options.faults)} for what, make in cases.items()]
    harness.report("A bad day", rows, as_json=options.json, note="recovery from when an answer was possible again")


if __name__ == "__main__":
    main()
