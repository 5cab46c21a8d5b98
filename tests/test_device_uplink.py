"""Servers that are absent, die, stall, lie and drain: every frame ends exactly once."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from bundles import CLASSES, make_bundle, pictures
from faulty import Answers, FaultyServer, Say, open_descriptors, refusal, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from narrows.device import Device, DeviceOptions
from narrows.device.backoff import Backoff
from narrows.protos import split_pb2 as pb
from narrows.runtime.answer import Reply
from narrows.runtime.bundle import Bundle
from narrows.runtime.errors import BundleMismatchError, ChecksumError, DrainingError, ModelNotFoundError, UsageError
from narrows.runtime.link import PACKET_BYTES
from narrows.runtime.wire import reply_to_wire
from processes import forked_server

QUICK = DeviceOptions(timeout_s=5.0, stall_s=0.3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def answers(bundle: Bundle) -> Answers:
    return Answers(bundle)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_without_a_server_every_frame_ends_as_unavailable_and_only_the_first_wait(bundle: Bundle) -> None:
    began = time.monotonic()
    with Device(bundle, f"127.0.0.1:{free_port()}", DeviceOptions(timeout_s=0.5, window=2)) as device:
        outcomes = list(device.stream(pictures(50)))
    assert [outcome.outcome for outcome in outcomes] == ["unavailable"] * 50
    assert time.monotonic() - began < 10  # fifty waits would be 12 s and more
    assert outcomes[0].provenance is None
    assert outcomes[0].attempts == 0


@pytest.mark.parametrize("several", [True, False])
def test_small_frames_share_a_packet_with_a_server_that_takes_several(
    bundle: Bundle, answers: Answers, several: bool
) -> None:
    server = FaultyServer(lambda frame, _: iter([answers.to(frame)]), several=several)
    with serving(server) as address, Device(bundle, address) as device:
        outcomes = list(device.stream(pictures(300)))
    assert [outcome.outcome for outcome in outcomes] == ["ok"] * 300
    assert server.hellos[0].several
    shared = [message for message in server.messages if message.HasField("frames")]
    assert several or not shared
    assert all(len(m.frames.frames) > 1 and m.frames.ByteSize() <= PACKET_BYTES + 8 * 64 for m in shared)


def test_a_server_that_comes_late_is_found(bundle: Bundle, answers: Answers) -> None:
    port = free_port()
    with Device(bundle, f"127.0.0.1:{port}") as device:
        stream = device.stream(pictures(5))
        timer = threading.Timer(0.8, lambda: None)
        timer.start()
        timer.join()
        with serving(FaultyServer(lambda frame, _: iter([answers.to(frame)])), port):
            assert [outcome.outcome for outcome in stream] == ["ok"] * 5


def test_a_killed_server_costs_no_frame(bundle: Bundle) -> None:
    """500 frames; SIGKILL in mid-stream; back more than a second later on the same port."""
    port = free_port()
    with forked_server(bundle.root.parent, port) as (process, address), Device(bundle, address) as device:
        assert len(list(device.stream(pictures(100)))) == 100
        slow = (picture for picture in pictures(500) if time.sleep(0.002) is None)
        outcomes = []
        for outcome in device.stream(slow):
            outcomes.append(outcome)
            if outcome.id == 100:
                process.kill()
                process.join()
                revival = threading.Thread(target=_serve_again, args=(bundle.root.parent, port, device))
                revival.start()
        revival.join()
    assert [outcome.id for outcome in outcomes] == list(range(500))
    assert Counter(outcome.outcome for outcome in outcomes) == {"ok": 500}
    assert max(outcome.ms["total"] for outcome in outcomes) > 1000


def _serve_again(bundles: Path, port: int, device: Device) -> None:
    time.sleep(1.2)
    with forked_server(bundles, port):
        while device.counters.replies < 600:
            time.sleep(0.05)
        time.sleep(0.2)


def test_a_stalled_server_is_left_and_its_frames_are_sent_again(bundle: Bundle, answers: Answers) -> None:
    stalled = threading.Event()

    def behave(frame: pb.Frame, _: grpc.ServicerContext) -> Say:
        if not stalled.is_set() and len(server.frames) == 4:
            stalled.set()
            server.gone.wait(30)  # says nothing any more on this stream
        yield answers.to(frame)

    server = FaultyServer(behave)
    with serving(server) as address, Device(bundle, address, QUICK) as device:
        outcomes = list(device.stream(pictures(20)))
        assert Counter(outcome.outcome for outcome in outcomes) == {"ok": 20}
        assert device.counters.stalls == 1
        assert device.counters.connections == 2
        server.gone.set()
    assert max(outcome.attempts for outcome in outcomes) == 2


def test_a_server_that_never_answers_ends_frames_by_their_time(bundle: Bundle) -> None:
    options = DeviceOptions(timeout_s=1.0, stall_s=0.2)
    with (
        serving(FaultyServer(lambda frame, _: iter(()))) as address,
        Device(bundle, address, options) as device,
    ):
        outcomes = list(device.stream(pictures(8)))
    assert {outcome.outcome for outcome in outcomes} <= {"deadline", "unavailable"}
    assert all(outcome.ms["total"] < 3000 for outcome in outcomes)


def test_a_slow_server_is_not_taken_for_a_stalled_one_for_ever(bundle: Bundle, answers: Answers) -> None:
    def behave(frame: pb.Frame, context: grpc.ServicerContext) -> Say:
        server.gone.wait(0.5)
        if context.is_active():
            yield answers.to(frame)

    server = FaultyServer(behave)
    options = DeviceOptions(timeout_s=10, stall_s=0.2, window=1)
    with serving(server) as address, Device(bundle, address, options) as device:
        assert [outcome.outcome for outcome in device.stream(pictures(4))] == ["ok"] * 4
        assert device.counters.stalls <= 2


def test_wrong_ids_and_second_answers_are_dropped(bundle: Bundle, answers: Answers) -> None:
    def behave(frame: pb.Frame, _: grpc.ServicerContext) -> Say:
        right = answers.to(frame)
        wrong = pb.ServerMessage()
        wrong.CopyFrom(right)
        wrong.outcome.id += 1_000_000
        yield from (wrong, right, right)

    with serving(FaultyServer(behave)) as address, Device(bundle, address, QUICK) as device:
        outcomes = list(device.stream(pictures(20)))
        for _ in range(100):
            if device.counters.strange == 40:
                break
            time.sleep(0.02)
        assert device.counters.strange == 40
    assert Counter(outcome.outcome for outcome in outcomes) == {"ok": 20}
    assert [outcome.id for outcome in outcomes] == list(range(20))


@pytest.mark.parametrize(
    ("tensor", "code"),
    [
        (pb.Tensor(name="logits", dtype="float32", shape=[CLASSES], data=b"short"), "frame"),
        (pb.Tensor(name="logits", dtype="object", shape=[CLASSES], data=b"x" * 80), "frame"),
        (pb.Tensor(name="logits", dtype="float32", shape=[2], data=b"x" * 8), "shape"),
        (pb.Tensor(name="logits", dtype="float64", shape=[CLASSES], data=b"x" * 80), "shape"),
        (pb.Tensor(name="other", dtype="float32", shape=[2], data=b"x" * 8), "shape"),
    ],
)
def test_an_answer_that_is_not_the_models_is_an_error(bundle: Bundle, tensor: pb.Tensor, code: str) -> None:
    def behave(frame: pb.Frame, _: grpc.ServicerContext) -> Say:
        yield pb.ServerMessage(outcome=pb.Outcome(id=frame.id, outputs=[tensor]))

    with serving(FaultyServer(behave)) as address, Device(bundle, address, QUICK) as device:
        assert device.infer(pictures(1)[0]).outcome == code


def test_draining_in_band_moves_the_stream_without_loss(bundle: Bundle, answers: Answers) -> None:
    def behave(frame: pb.Frame, _: grpc.ServicerContext) -> Say:
        if len(server.frames) == 3:
            yield pb.ServerMessage(draining=pb.Draining())
        if 3 < len(server.frames) <= 5 and len(server.hellos) == 1:
            yield refusal(frame, DrainingError("going down"))
        else:
            yield answers.to(frame)

    server = FaultyServer(behave)
    with serving(server) as address, Device(bundle, address, QUICK) as device:
        outcomes = list(device.stream(pictures(20)))
        assert device.counters.drains == 1
        assert device.counters.stalls == 0
    assert Counter(outcome.outcome for outcome in outcomes) == {"ok": 20}
    assert len(server.hellos) == 2


def test_a_draining_process_hands_over_to_the_next(bundle: Bundle) -> None:
    """SIGTERM to a real server, another listens meanwhile: frames go on there, none is lost."""
    with (
        forked_server(bundle.root.parent) as (first, one),
        forked_server(bundle.root.parent) as (_, two),
        Device(bundle, [one, two]) as device,
    ):
        outcomes = []
        for outcome in device.stream(pictures(200)):
            outcomes.append(outcome)
            if outcome.id == 50:
                first.terminate()
        first.join(20)
        assert first.exitcode == 0
        assert device.infer(pictures(1)[0]).outcome == "ok"
    assert Counter(outcome.outcome for outcome in outcomes) == {"ok": 200}


def test_a_corrupted_frame_is_sent_once_more(bundle: Bundle, answers: Answers) -> None:
    spoiled = Counter()

    def behave(frame: pb.Frame, _: grpc.ServicerContext) -> Say:
        spoiled[frame.checksum] += 1
        yield answers.to(frame) if spoiled[frame.checksum] == 2 else refusal(frame, ChecksumError("other symbols"))

    def always(frame: pb.Frame, _: grpc.ServicerContext) -> Say:
        yield refusal(frame, ChecksumError("other symbols"))

    with serving(FaultyServer(behave)) as address, Device(bundle, address, QUICK) as device:
        assert [outcome.outcome for outcome in device.stream(pictures(5))] == ["ok"] * 5
    with serving(FaultyServer(always)) as address, Device(bundle, address, QUICK) as device:
        outcome = device.infer(pictures(1)[0])
    assert (outcome.outcome, outcome.attempts) == ("checksum", 2)


def test_a_server_that_takes_another_coder_gets_it(bundle: Bundle, answers: Answers) -> None:
    server = FaultyServer(lambda frame, _: iter([answers.to(frame)]), coder="raw/1")
    with serving(server) as address, Device(bundle, address, QUICK) as device:
        assert [outcome.outcome for outcome in device.stream(pictures(5))] == ["ok"] * 5
    assert {frame.coder for frame in server.frames} == {0}


def test_the_servers_caps_are_kept(bundle: Bundle, answers: Answers) -> None:
    waiting = []

    def behave(frame: pb.Frame, _: grpc.ServicerContext) -> Say:
        waiting.append(frame)
        if len(waiting) == 2:
            server.gone.wait(0.1)  # time for a third to come, if one would
            assert len(server.frames) % 2 == 0
            yield from map(answers.to, waiting)
            waiting.clear()

    server = FaultyServer(behave, max_in_flight=2)
    with serving(server) as address, Device(bundle, address, QUICK) as device:
        assert [outcome.outcome for outcome in device.stream(pictures(10))] == ["ok"] * 10
    with serving(FaultyServer(behave, max_frame_bytes=10)) as address, Device(bundle, address, QUICK) as device:
        assert device.infer(pictures(1)[0]).outcome == "frame-too-large"


class Refusing(FaultyServer):
    def __init__(self, status: grpc.StatusCode, code: str | None) -> None:
        super().__init__(lambda frame, _: iter(()))
        self.status, self.code = status, code

    def Stream(self, messages: Iterator[pb.ClientMessage], context: grpc.ServicerContext) -> Say:  # noqa: N802
        self.hellos.append(next(messages).hello)
        if self.code:
            context.set_trailing_metadata((("narrows-code", self.code),))
        context.abort(self.status, "as told")


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "bundle-mismatch", BundleMismatchError),
        (grpc.StatusCode.NOT_FOUND, "model-not-found", ModelNotFoundError),
        (grpc.StatusCode.UNIMPLEMENTED, None, UsageError),
    ],
)
def test_a_fault_of_the_set_up_ends_the_stream_with_itself(bundle: Bundle, status, code, error) -> None:
    server, outcomes = Refusing(status, code), []
    with serving(server) as address, Device(bundle, address, QUICK) as device:
        with pytest.raises(error):
            outcomes.extend(device.stream(pictures(30)))
        assert isinstance(device.infer(pictures(1)[0]).error, error)
    assert {type(outcome.error) for outcome in outcomes} <= {error}
    assert len(server.hellos) == 1


def test_a_server_that_is_full_is_asked_again(bundle: Bundle, answers: Answers) -> None:
    port = free_port()
    with Device(bundle, f"127.0.0.1:{port}", QUICK) as device:
        stream = device.stream(pictures(3))
        refusing = Refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded")
        with serving(refusing, port):
            while len(refusing.hellos) < 2:
                time.sleep(0.02)
        with serving(FaultyServer(lambda frame, _: iter([answers.to(frame)])), port):
            assert [outcome.outcome for outcome in stream] == ["ok"] * 3


def test_closing_ends_what_is_under_way(bundle: Bundle) -> None:
    outcomes = []
    with serving(FaultyServer(lambda frame, _: iter(()))) as address:
        device = Device(bundle, address).__enter__()
        caller = threading.Thread(target=lambda: outcomes.append(device.infer(pictures(1)[0])))
        caller.start()
        time.sleep(0.3)
        device.close()
        caller.join(5)
    assert [outcome.outcome for outcome in outcomes] == ["unavailable"]


ACTIONS = ("answer", "answer", "answer", "twice", "wrong id", "nothing", "damaged", "drain", "break", "welcome again")


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(st.sampled_from(ACTIONS), max_size=30), frames=st.integers(1, 12))
def test_every_frame_ends_once_whatever_the_server_does(bundle, answers, actions: list[str], frames: int) -> None:
    script, lock = iter(actions), threading.Lock()

    def behave(frame: pb.Frame, context: grpc.ServicerContext) -> Say:
        with lock:
            action = next(script, "answer")
        right = answers.to(frame)
        if action == "break":
            context.abort(grpc.StatusCode.UNAVAILABLE, "as told")
        if action == "drain":
            yield pb.ServerMessage(draining=pb.Draining())
        if action == "welcome again":
            yield pb.ServerMessage(welcome=pb.Welcome(coder="raw/1"))
        if action == "wrong id":
            yield pb.ServerMessage(outcome=reply_to_wire(Reply(frame.id + 777)))
        if action == "damaged":
            yield pb.ServerMessage(outcome=pb.Outcome(id=frame.id, outputs=[pb.Tensor(name="logits", dtype="x")]))
        if action != "nothing":
            yield right
        if action == "twice":
            yield right

    options = DeviceOptions(timeout_s=4, stall_s=0.1)
    inputs = pictures(frames)
    with serving(FaultyServer(behave)) as address, Device(bundle, address, options) as device:
        outcomes = list(device.stream(inputs))
    assert [outcome.id for outcome in outcomes] == list(range(frames))
    for outcome in outcomes:
        assert outcome.outcome in {"ok", "frame", "deadline", "unavailable"}
        if outcome.error is None:
            assert np.isfinite(outcome.outputs["logits"]).all()


def test_reconnecting_leaks_nothing(bundle: Bundle, answers: Answers) -> None:
    def behave(frame: pb.Frame, context: grpc.ServicerContext) -> Say:
        yield answers.to(frame)
        context.abort(grpc.StatusCode.UNAVAILABLE, "one frame a connection")

    with serving(FaultyServer(behave)) as address, Device(bundle, address, DeviceOptions(window=1)) as device:
        assert [outcome.outcome for outcome in device.stream(pictures(3))] == ["ok"] * 3
        time.sleep(0.3)
        threads, descriptors = threading.active_count(), open_descriptors()
        assert [outcome.outcome for outcome in device.stream(pictures(15))] == ["ok"] * 15
        for _ in range(50):
            if open_descriptors() <= descriptors + 2 and threading.active_count() <= threads + 2:
                break
            time.sleep(0.1)
        assert open_descriptors() <= descriptors + 2
        assert threading.active_count() <= threads + 2


@given(st.floats(0.001, 1), st.floats(1, 100), st.integers(0, 2**32), st.integers(1, 100))
def test_back_off_grows_to_its_longest_and_never_beyond(first: float, longest: float, seed: int, tries: int) -> None:
    backoff = Backoff(first, longest, random.Random(seed))
    delays = [backoff.next_s() for _ in range(tries)]
    for n, delay in enumerate(delays):
        full = min(longest, first * 2**n)
        assert full / 2 <= delay <= full
    backoff.reset()
    assert backoff.next_s() <= first
