"""A bad day: a server killed again and again, cut links, corrupted bytes. No frame is lost, none ends twice."""

from __future__ import annotations

import itertools
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from bundles import make_bundle, pictures
from faulty import open_descriptors
from narrows.device import Device, DeviceOptions
from narrows.device.emulator import LinkEmulator
from narrows.device.schedule import parse_link
from narrows.runtime.bundle import Bundle
from narrows.server import ServeOptions, ServerThread
from processes import forked_server

KILLS = 20


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def until(over: threading.Event, pause_s: float) -> Iterator[np.ndarray]:
    """Pictures until somebody says that it is over."""
    for picture in itertools.cycle(pictures(7)):
        if over.wait(pause_s):
            return
        yield picture


def check(device: Device, outcomes: list) -> None:
    assert [outcome.id for outcome in outcomes] == list(range(len(outcomes)))
    assert Counter(outcome.outcome for outcome in outcomes) == {"ok": len(outcomes)}
    assert device.tally.server == len(outcomes)


def test_a_server_killed_twenty_times_costs_no_frame(bundle: Bundle) -> None:
    over, done = threading.Event(), []

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])

    def kill_again_and_again(device: Device) -> None:
        for _ in range(KILLS):
            with forked_server(bundle.root.parent, port):
                answered = device.counters.replies
                while device.counters.replies < answered + 10:
                    time.sleep(0.01)
        with forked_server(bundle.root.parent, port):
            answered = device.counters.replies
            while device.counters.replies < answered + 10:
                time.sleep(0.01)
            over.set()
            while not done:
                time.sleep(0.01)

    with Device(bundle, f"127.0.0.1:{port}", DeviceOptions(timeout_s=30)) as device:
        killer = threading.Thread(target=kill_again_and_again, args=(device,))
        killer.start()
        outcomes = list(device.stream(until(over, 0.002)))
        done.append(True)
        killer.join()
        check(device, outcomes)
        assert device.counters.connections >= KILLS
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("narrows-")]


@pytest.mark.parametrize("link", ["20mbit,1ms", "400kbit,5ms"])
def test_links_cut_in_mid_frame_cost_no_frame(bundle: Bundle, link: str) -> None:
    over = threading.Event()
    with (
        ServerThread(ServeOptions(bundle.root.parent, port=0)) as server,
        LinkEmulator(server.address, parse_link(link)) as emulated,
        Device(bundle, emulated.address, DeviceOptions(timeout_s=20)) as device,
    ):
        device.infer(pictures(1)[0])
        before = open_descriptors()

        def cut_now_and_then() -> None:
            for pause in random.Random(1).choices([0.05, 0.1, 0.2, 0.3], k=15):
                time.sleep(pause)
                emulated.cut()
            over.set()

        cutter = threading.Thread(target=cut_now_and_then)
        cutter.start()
        outcomes = list(device.stream(until(over, 0.001)))
        cutter.join()
        device.tally.server -= 1  # the first, before the stream
        check(device, outcomes)
        assert device.counters.failures >= 5
        for _ in range(50):
            if open_descriptors() <= before + 4:
                break
            time.sleep(0.1)
        assert open_descriptors() <= before + 4


@contextmanager
def corrupting(target: str, every: int) -> Iterator[str]:
    """A proxy that turns a bit over now and then, in what the device sends."""
    listener = socket.create_server(("127.0.0.1", 0))
    draw, sockets = random.Random(3), []

    def pump(source: socket.socket, sink: socket.socket, spoil: bool) -> None:
        passed = 0
        try:
            while data := bytearray(source.recv(65536)):
                passed += len(data)
                if spoil and passed > 3000 and draw.randrange(every) == 0:
                    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for one in (source, sink):
                hang_up(one)

    def serve() -> None:
        host, _, port = target.rpartition(":")
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection((host, int(port)))
            except OSError:
                return
            sockets.extend((near, far))
            threading.Thread(target=pump, args=(near, far, True), daemon=True).start()
            threading.Thread(target=pump, args=(far, near, False), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        hang_up(listener)
        listener.close()
        thread.join(5)
        for one in sockets:
            hang_up(one)
            one.close()


def hang_up(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


def test_corrupted_bytes_never_become_a_wrong_answer(bundle: Bundle) -> None:
    picture = pictures(1)[0]
    with ServerThread(ServeOptions(bundle.root.parent, port=0)) as server:
        with Device(bundle, server.address) as clean:
            right = clean.infer(picture).outputs["logits"]
        with (
            corrupting(server.address, every=6) as address,
            Device(bundle, address, DeviceOptions(timeout_s=10, stall_s=0.5)) as device,
        ):
            outcomes = list(device.stream([picture] * 150))
    assert [outcome.id for outcome in outcomes] == list(range(150))
    for outcome in outcomes:
        if outcome.error is None:
            np.testing.assert_allclose(outcome.outputs["logits"], right, rtol=1e-5)
    answered = sum(outcome.error is None for outcome in outcomes)
    assert answered > 75
