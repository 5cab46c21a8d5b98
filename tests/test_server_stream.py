"""A real server on a loopback port: right answers to the right frames, and an error for everything else."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from bundles import QUALITIES, make_bundle, pictures
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from narrows.protos import split_pb2 as pb
from narrows.protos import split_pb2_grpc
from narrows.runtime.bundle import Bundle
from narrows.runtime.codec import labels
from narrows.runtime.frame import CodedTensor, Frame, Limits
from narrows.runtime.manifest import Half
from narrows.runtime.session import SessionOptions
from narrows.runtime.wire import frame_to_wire, reply_from_wire
from narrows.server import BatchOptions, ServeOptions, ServerThread
from narrows.server.engine import SplitEngine
from server_client import Frames, code_of, hello, stream

MAX_FRAME_BYTES = 4096
MAX_IN_FLIGHT = 8


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def frames(bundle: Bundle) -> Frames:
    return Frames(bundle)


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[ServerThread]:
    options = ServeOptions(
        bundle.root.parent,
        port=0,
        limits=Limits(max_frame_bytes=MAX_FRAME_BYTES, max_in_flight=MAX_IN_FLIGHT),
        batch=BatchOptions(runs=1, max_batch=4, queue=64),
        session=SessionOptions(threads=1),
    )
    with ServerThread(options) as thread:
        yield thread


@pytest.fixture
def stub(server: ServerThread) -> Iterator[split_pb2_grpc.SplitInferenceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield split_pb2_grpc.SplitInferenceStub(channel)


class Gate(threading.Event):
    """Holds up every run of a tail until it is set: load, without depending on time."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    event, run = Gate(), SplitEngine.run

    def held(self, batch):
        event.reached.set()
        assert event.wait(30)
        return run(self, batch)

    monkeypatch.setattr(SplitEngine, "run", held)
    yield event
    event.set()


def test_the_handshake_says_coder_and_limits(server: ServerThread, bundle: Bundle) -> None:
    with stream(server.address, hello(bundle, coders=["unheard-of/9", *reversed(labels())])) as client:
        welcome = client.receive().welcome
    assert welcome.coder == labels()[-1]
    assert (welcome.max_frame_bytes, welcome.max_in_flight) == (MAX_FRAME_BYTES, MAX_IN_FLIGHT)


def test_many_streams_of_mixed_qualities_get_their_own_answers(
    server: ServerThread, bundle: Bundle, frames: Frames
) -> None:
    wrong: list[str] = []
    sizes: list[int] = []

    def one_device(number: int) -> None:
        made = [frames.make(i, p, (i + number) % QUALITIES) for i, p in enumerate(pictures(48, seed=number))]
        with stream(server.address, hello(bundle)) as client:
            client.receive()
            for first in range(0, len(made), MAX_IN_FLIGHT):
                group = made[first : first + MAX_IN_FLIGHT]
                for frame in group:
                    client.send(frame)
                for frame_id, reply in client.replies(len(group)).items():
                    sizes.append(reply.timing.batch)
                    expected = frames.expected(made[frame_id])
                    if reply.error or not np.allclose(reply.outputs["logits"], expected, rtol=1e-4, atol=1e-5):
                        wrong.append(f"stream {number} frame {frame_id}: {reply}")

    devices = [threading.Thread(target=one_device, args=(number,)) for number in range(4)]
    for device in devices:
        device.start()
    for device in devices:
        device.join()
    assert not wrong
    assert len(sizes) == 4 * 48
    assert max(sizes) > 1, "frames of several streams share a batch"


def test_the_best_classes_alone(server: ServerThread, bundle: Bundle, frames: Frames) -> None:
    frame = frames.make(5, pictures(1)[0])
    with stream(server.address, hello(bundle, answer=pb.Answer(form=pb.Answer.TOP, top=3))) as client:
        client.receive()
        client.send(frame)
        reply = client.reply()
    assert not reply.outputs
    assert [best.index for best in reply.top] == np.argsort(-frames.expected(frame))[:3].tolist()


def together(made: Sequence[Frame]) -> pb.ClientMessage:
    return pb.ClientMessage(frames=pb.Frames(frames=[frame_to_wire(frame) for frame in made]))


@pytest.mark.parametrize("several", [True, False])
def test_frames_that_come_together_are_answered_together_where_the_device_takes_that(
    bundle: Bundle, frames: Frames, gate: Gate, several: bool
) -> None:
    batch = BatchOptions(runs=1, max_batch=4, learn_s=0)  # nothing is known of its runs, so batches are of four
    made = [frames.make(i, picture, quality=i % 3) for i, picture in enumerate(pictures(MAX_IN_FLIGHT))]
    made[4] = replace(made[4], checksum=made[4].checksum ^ 1)

    def outcomes_in(message: pb.ServerMessage) -> Sequence[pb.Outcome]:
        return message.outcomes.outcomes if message.HasField("outcomes") else [message.outcome]

    options = ServeOptions(bundle.root, port=0, batch=batch, session=SessionOptions(threads=1))
    with ServerThread(options) as server, stream(server.address, hello(bundle, several=several)) as client:
        assert client.receive().welcome.several
        client.send(together(made))
        (damaged,) = outcomes_in(client.receive())
        assert (damaged.id, damaged.error.code) == (4, "checksum")
        gate.set()  # by now the frames before it run or are ready, at least two of them together
        messages: list[Sequence[pb.Outcome]] = []
        while sum(map(len, messages)) < len(made) - 1:
            messages.append(outcomes_in(client.receive()))
    assert (max(map(len, messages)) > 1) == several
    replies = {outcome.id: reply_from_wire(outcome) for outcomes in messages for outcome in outcomes}
    assert replies.keys() == set(range(len(made))) - {4}
    for i, reply in replies.items():
        np.testing.assert_allclose(reply.outputs["logits"], frames.expected(made[i]), atol=1e-4)


def test_more_frames_than_may_be_in_flight_are_no_message(server: ServerThread, bundle: Bundle, frames: Frames) -> None:
    made = [frames.make(i, pictures(1)[0]) for i in range(MAX_IN_FLIGHT + 1)]
    with stream(server.address, hello(bundle)) as client:
        client.receive()
        client.send(together(made))
        with pytest.raises(grpc.RpcError) as caught:
            client.receive()
    assert code_of(caught.value) == "usage"
    assert str(MAX_IN_FLIGHT) in caught.value.details()


@pytest.mark.parametrize(
    ("changes", "status", "code", "text"),
    [
        ({"bundle": "0" * 64}, grpc.StatusCode.FAILED_PRECONDITION, "bundle-mismatch", "0" * 64),
        ({"bundle": ""}, grpc.StatusCode.INVALID_ARGUMENT, "usage", "digest"),
        ({"model": "other"}, grpc.StatusCode.NOT_FOUND, "model-not-found", "tiny"),
        ({"coders": ["other/1"]}, grpc.StatusCode.INVALID_ARGUMENT, "coder", "other/1"),
        ({"protocol": 9}, grpc.StatusCode.INVALID_ARGUMENT, "usage", "protocol 9"),
        ({"answer": pb.Answer(top=100_000)}, grpc.StatusCode.INVALID_ARGUMENT, "usage", "100000"),
    ],
)
def test_a_hello_that_does_not_fit(server: ServerThread, bundle: Bundle, changes, status, code: str, text: str) -> None:
    with stream(server.address, hello(bundle, **changes)) as client, pytest.raises(grpc.RpcError) as caught:
        client.receive()
    assert (caught.value.code(), code_of(caught.value)) == (status, code)
    assert text in caught.value.details()
    if code == "bundle-mismatch":
        assert bundle.digest in caught.value.details()


def test_messages_out_of_turn(server: ServerThread, bundle: Bundle, frames: Frames) -> None:
    with stream(server.address, None) as client, pytest.raises(grpc.RpcError, match="first message is hello"):
        client.send(frames.make(1, pictures(1)[0]))
        client.receive()
    with stream(server.address, hello(bundle)) as client:
        client.receive()
        client.send(pb.ClientMessage(hello=hello(bundle)))
        with pytest.raises(grpc.RpcError, match="every message of a stream is a frame"):
            client.receive()


BAD_FRAMES = {
    "checksum": lambda f: replace(f, checksum=f.checksum ^ 1),
    "quality": lambda f: replace(f, quality=QUALITIES),
    "an unknown cut": lambda f: replace(f, cut=7),
    "an unknown coder": lambda f: replace(f, coder=999),
    "a payload that is none": lambda f: replace(f, tensors=(CodedTensor(b"\x07nonsense"),)),
    "a payload cut short": lambda f: replace(f, tensors=(CodedTensor(f.tensors[0].payload[:-3]),)),
    "too few tensors": lambda f: replace(f, tensors=()),
    "a shape of another bundle": lambda f: replace(f, tensors=(CodedTensor(f.tensors[0].payload, (8, 9, 9)),)),
    "an absurd shape": lambda f: replace(f, tensors=(CodedTensor(f.tensors[0].payload, (1 << 31,) * 3),)),
    "more bytes than the tensor": lambda f: replace(f, tensors=(CodedTensor(bytes(3000)),)),
    "more bytes than the cap": lambda f: replace(f, tensors=(CodedTensor(bytes(MAX_FRAME_BYTES + 1)),)),
}
CODES = {
    "checksum": "checksum",
    "quality": "quality",
    "an unknown cut": "quality",
    "an unknown coder": "coder",
    "a payload that is none": "coder",
    "a payload cut short": "coder",
    "too few tensors": "shape",
    "a shape of another bundle": "shape",
    "an absurd shape": "shape",
    "more bytes than the tensor": "frame-too-large",
    "more bytes than the cap": "frame-too-large",
}


@pytest.mark.parametrize("fault", BAD_FRAMES)
def test_a_bad_frame_costs_itself_alone(server: ServerThread, bundle: Bundle, frames: Frames, fault: str) -> None:
    good = [frames.make(i, picture) for i, picture in enumerate(pictures(3))]
    with stream(server.address, hello(bundle)) as client:
        client.receive()
        for frame in (good[0], BAD_FRAMES[fault](good[1]), good[2]):
            client.send(frame)
        replies = client.replies(3)
    assert replies[1].error is not None
    assert replies[1].error.code == CODES[fault]
    for i in (0, 2):
        np.testing.assert_allclose(replies[i].outputs["logits"], frames.expected(good[i]), rtol=1e-4, atol=1e-5)


def test_an_unknown_mode_is_refused(server: ServerThread, bundle: Bundle, frames: Frames) -> None:
    message = frame_to_wire(frames.make(4, pictures(1)[0]))
    message.mode = 5  # type: ignore[assignment]  # open enum: a newer device may send it
    with stream(server.address, hello(bundle)) as client:
        client.receive()
        client.send(pb.ClientMessage(frame=message))
        assert client.reply().error.code == "frame"


def test_a_message_over_the_transports_cap_ends_the_call_and_not_the_server(
    server: ServerThread, bundle: Bundle, frames: Frames
) -> None:
    frame = frames.make(1, pictures(1)[0])
    with stream(server.address, hello(bundle)) as client:
        client.receive()
        client.send(replace(frame, tensors=(CodedTensor(bytes(1 << 20)),)))
        with pytest.raises(grpc.RpcError):
            client.receive()
    with stream(server.address, hello(bundle)) as client:
        client.receive()
        client.send(frame)
        assert client.reply().error is None


def test_ids_in_flight_are_not_taken_twice(server: ServerThread, bundle: Bundle, frames: Frames, gate: Gate) -> None:
    frame = frames.make(1, pictures(1)[0])
    with stream(server.address, hello(bundle)) as client:
        client.receive()
        client.send(frame)
        client.send(frame)
        refused = client.reply()
        assert (refused.id, refused.error.code) == (1, "frame")
        gate.set()
        assert client.reply().error is None
        client.send(frame)
        assert client.reply().error is None, "an id whose outcome is out may be used again"


def test_more_in_flight_than_allowed_is_overload(
    server: ServerThread, bundle: Bundle, frames: Frames, gate: Gate
) -> None:
    made = [frames.make(i, picture) for i, picture in enumerate(pictures(MAX_IN_FLIGHT + 1))]
    with stream(server.address, hello(bundle)) as client:
        client.receive()
        for frame in made:
            client.send(frame)
        refused = client.reply()
        assert (refused.id, refused.error.code) == (MAX_IN_FLIGHT, "overloaded")
        gate.set()
        assert not any(reply.error for reply in client.replies(MAX_IN_FLIGHT).values())


def test_deadlines_are_kept(server: ServerThread, bundle: Bundle, frames: Frames, gate: Gate) -> None:
    held, late = frames.make(1, pictures(1)[0]), frames.make(2, pictures(1)[0], deadline_ms=1)
    with stream(server.address, hello(bundle)) as client:
        client.receive()
        client.send(held)
        assert gate.reached.wait(10), "the late frame is to find the tail busy"
        client.send(late)
        client.send(replace(held, checksum=0, id=3, cut=9))
        assert client.reply().id == 3, "all three have been read"
        threading.Event().wait(0.05)
        gate.set()
        replies = client.replies(2)
    assert replies[1].error is None
    assert replies[2].error.code == "deadline"


def test_half_closing_finishes_what_is_in_flight(
    server: ServerThread, bundle: Bundle, frames: Frames, gate: Gate
) -> None:
    with stream(server.address, hello(bundle)) as client:
        client.receive()
        for i, picture in enumerate(pictures(5)):
            client.send(frames.make(i, picture))
        client.close()
        gate.set()
        assert set(client.replies(5)) == set(range(5))
        with pytest.raises(StopIteration):
            client.receive()
        assert client.call.code() is grpc.StatusCode.OK


def test_what_nobody_expected_stays_in_the_log(
    server: ServerThread, bundle: Bundle, frames: Frames, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    def broken(self, batch):
        raise ZeroDivisionError("a secret of the server")

    monkeypatch.setattr(SplitEngine, "run", broken)
    with stream(server.address, hello(bundle)) as client:
        client.receive()
        client.send(frames.make(1, pictures(1)[0]))
        error = client.reply().error
    assert error.code == "internal"
    assert "secret" not in str(error)
    assert "a secret of the server" in caplog.text


def test_describe(stub: split_pb2_grpc.SplitInferenceStub, bundle: Bundle) -> None:
    answer = stub.Describe(pb.DescribeRequest())
    assert list(answer.coders) == labels()
    (model,) = answer.models
    assert (model.name, model.bundle, model.cuts[0].name) == ("tiny", bundle.digest, "features")
    assert [quality.bits for quality in model.cuts[0].qualities] == [2, 4, 8]
    with pytest.raises(grpc.RpcError) as caught:
        stub.Describe(pb.DescribeRequest(model="other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_heads_are_fetched_whole_and_from_an_offset(
    stub: split_pb2_grpc.SplitInferenceStub, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NARROWS_CACHE", str(tmp_path / "cache"))
    chunks = list(stub.FetchHead(pb.FetchHeadRequest(model="tiny")))
    archive = b"".join(chunk.data for chunk in chunks)
    assert chunks[0].bundle == bundle.digest
    assert chunks[0].total_bytes == len(archive)
    assert chunks[0].sha256 == hashlib.sha256(archive).hexdigest()
    rest = list(stub.FetchHead(pb.FetchHeadRequest(model="tiny", bundle=bundle.digest, offset=1000)))
    assert b"".join(chunk.data for chunk in rest) == archive[1000:]
    (tmp_path / "head.zip").write_bytes(archive)
    assert Bundle.open(tmp_path / "head.zip", Half.DEVICE).digest == bundle.digest
    assert "tail.onnx" not in zipfile.ZipFile(tmp_path / "head.zip").namelist()
    with pytest.raises(grpc.RpcError, match="behind the archive"):
        list(stub.FetchHead(pb.FetchHeadRequest(model="tiny", offset=1 << 40)))


def test_one_frame_in_one_call(stub: split_pb2_grpc.SplitInferenceStub, bundle: Bundle, frames: Frames) -> None:
    frame = frames.make(9, pictures(1)[0])
    request = pb.InferRequest(model="tiny", bundle=bundle.digest, frame=frame_to_wire(frame))
    reply = reply_from_wire(stub.Infer(request))
    assert reply.id == 9
    np.testing.assert_allclose(reply.outputs["logits"], frames.expected(frame), rtol=1e-4, atol=1e-5)
    request.frame.checksum ^= 1
    with pytest.raises(grpc.RpcError) as caught:
        stub.Infer(request)
    assert (caught.value.code(), code_of(caught.value)) == (grpc.StatusCode.DATA_LOSS, "checksum")


def test_health_and_reflection(server: ServerThread) -> None:
    with grpc.insecure_channel(server.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for name in ("", "tiny", "narrows.v1.SplitInference"):
            status = check(health_pb2.HealthCheckRequest(service=name)).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"narrows.v1.SplitInference", "grpc.health.v1.Health"} <= set(services)
