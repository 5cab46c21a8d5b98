"""The emulated link: its arithmetic, and that what passes is what was sent."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bundles import make_bundle, pictures
from hypothesis import given
from hypothesis import strategies as st
from narrows.device import Device, DeviceOptions
from narrows.device.emulator import LinkEmulator
from narrows.device.schedule import LinkState, Schedule, parse_link, read_trace
from narrows.runtime.errors import UsageError
from narrows.server import ServeOptions, ServerThread


@contextmanager
def echo() -> Iterator[str]:
    """A server that sends back what it gets, on one connection after the other."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def exchange(address: str, data: bytes) -> bytes:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        sender = threading.Thread(target=lambda: (connection.sendall(data), connection.shutdown(socket.SHUT_WR)))
        sender.start()
        received = b"".join(iter(lambda: connection.recv(65536), b""))
        sender.join()
    return received


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("10mbit,20ms,1%", LinkState(10e6, 0.02, 0.0, 0.01)),
        ("256kbit", LinkState(256e3)),
        ("1.5ms~500us", LinkState(delay_s=0.0015, jitter_s=0.0005)),
        ("0bit", LinkState(0.0)),
    ],
)
def test_a_link_is_read_from_a_few_words(text: str, state: LinkState) -> None:
    (found,) = parse_link(text).states
    assert (found.rate_bps, found.loss) == (state.rate_bps, state.loss)
    assert found.delay_s == pytest.approx(state.delay_s)
    assert found.jitter_s == pytest.approx(state.jitter_s)


@pytest.mark.parametrize("text", ["fast", "10", "10mbit;20ms", "100%", "-1ms", "trace:nowhere"])
def test_what_is_no_link_is_told(text: str) -> None:
    with pytest.raises(UsageError):
        parse_link(text)


def test_a_trace_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "fade.txt"
    path.write_text("# seconds rate delay\n0 10mbit 20ms\n\n2.5 0bit # nothing\n4 1mbit 40ms~5ms 2%\n")
    schedule = parse_link(f"trace:{path}")
    assert schedule.times_s == (0, 2.5, 4)
    assert schedule.at(3).rate_bps == 0
    assert schedule.at(100) == LinkState(1e6, 0.04, 0.005, 0.02)
    for wrong in ("1 1mbit", "0 1mbit\n0 2mbit", "x 1mbit", "0 quick", ""):
        path.write_text(wrong)
        with pytest.raises(UsageError):
            read_trace(path)


rates = st.sampled_from([0.0, 8e3, 64e3, 1e6, 1e9])
schedules = st.lists(st.tuples(st.floats(0.01, 2), rates), min_size=1, max_size=6).map(
    lambda rows: Schedule(
        tuple(sum(gap for gap, _ in rows[:i]) for i in range(len(rows))), tuple(LinkState(rate) for _, rate in rows)
    )
)


@given(schedules, st.floats(0, 10), st.integers(0, 100_000))
def test_what_left_is_what_the_rate_allows(schedule: Schedule, start: float, size: int) -> None:
    end = schedule.sent_by(start, size)
    assert end >= start
    if end == float("inf"):
        assert schedule.states[-1].rate_bps == 0
        return
    moments = [start, *(t for t in schedule.times_s if start < t < end), end]
    bits = sum(schedule.at(a).rate_bps * (b - a) for a, b in itertools.pairwise(moments))
    assert bits == pytest.approx(size * 8, rel=1e-3, abs=1)


@given(schedules, st.floats(0, 5), st.integers(1, 50_000), st.integers(1, 50_000))
def test_two_pieces_leave_when_the_whole_would(schedule: Schedule, start: float, one: int, two: int) -> None:
    apart = schedule.sent_by(schedule.sent_by(start, one), two)
    assert apart == pytest.approx(schedule.sent_by(start, one + two), rel=1e-6)


@pytest.mark.parametrize("link", ["1gbit", "20mbit,2ms~3ms,5%", "2ms"])
def test_bytes_pass_unharmed_and_in_order(link: str) -> None:
    data = bytes(range(256)) * 1500
    with echo() as target, LinkEmulator(target, parse_link(link)) as emulated:
        assert exchange(emulated.address, data) == data
        assert exchange(emulated.address, b"again") == b"again"


def test_a_link_takes_the_time_that_it_says() -> None:
    """Not how fast this machine is: a lower bound that no machine can beat."""
    with echo() as target, LinkEmulator(target, parse_link("1mbit,50ms")) as emulated:
        began = emulated.time_s
        exchange(emulated.address, b"x" * 25_000)
        assert emulated.time_s - began >= 0.2 + 2 * 0.05


def test_a_cut_link_breaks_connections_and_takes_new_ones() -> None:
    with echo() as target, LinkEmulator(target, parse_link("1gbit")) as emulated:
        host, _, port = emulated.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"a")
            assert connection.recv(1) == b"a"
            emulated.cut()
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        assert exchange(emulated.address, b"b") == b"b"


@pytest.mark.parametrize("link", ["2mbit,5ms", "150ms", "50mbit,10ms~10ms,2%"])
def test_a_device_works_over_it(tmp_path: Path, link: str) -> None:
    bundle = make_bundle(tmp_path / "bundles" / "tiny")
    with (
        ServerThread(ServeOptions(bundle.root.parent, port=0)) as server,
        LinkEmulator(server.address, parse_link(link)) as emulated,
        Device(bundle, emulated.address, DeviceOptions(stall_s=3)) as device,
    ):
        outcomes = list(device.stream(pictures(20)))
    assert [outcome.outcome for outcome in outcomes] == ["ok"] * 20
    delay_ms = parse_link(link).states[0].delay_s * 1000
    assert min(outcome.ms["link"] for outcome in outcomes) >= 2 * delay_ms
