"""{unary, stream, OIP, OIP stream} × {ok, cancel, deadline, error, drain, kill}, against real processes."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from queue import SimpleQueue

import grpc
import numpy as np
import pytest
from bundles import make_bundle, pictures
from narrows.protos import oip_pb2, split_pb2_grpc
from narrows.protos import split_pb2 as pb
from narrows.runtime.bundle import Bundle
from narrows.runtime.frame import Frame
from narrows.runtime.wire import frame_to_wire, reply_from_wire
from processes import server_process
from server_client import Frames, StreamClient, code_of, hello
from slow_bundles import slowed

OK = "ok"
Ended = tuple[str, np.ndarray | None]
"""How a frame ended: "ok" or an error's name, and the logits."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles")
    return slowed(make_bundle(folder / "fast", "net"), folder / "slow")


@pytest.fixture(scope="module")
def frames(bundle: Bundle) -> Frames:
    return Frames(bundle)


class Unary:
    """`Infer`, one frame a call."""

    def __init__(self, channel: grpc.Channel, bundle: Bundle) -> None:
        self._infer = split_pb2_grpc.SplitInferenceStub(channel).Infer
        self._bundle = bundle
        self._calls: list[grpc.Future] = []

    def send(self, frame: Frame, deadline_s: float | None = None) -> None:
        request = pb.InferRequest(model="net", bundle=self._bundle.digest, frame=frame_to_wire(frame))
        self._calls.append(self._infer.future(request, timeout=deadline_s))

    def receive(self) -> Ended:
        try:
            return OK, reply_from_wire(self._calls.pop(0).result()).outputs["logits"]
        except grpc.FutureCancelledError:
            return "CANCELLED", None
        except grpc.RpcError as error:
            return code_of(error) or error.code().name, None

    def cancel(self) -> None:
        for call in self._calls:
            call.cancel()

    def close(self) -> None:
        self.cancel()


class Stream:
    """`Stream`, frames in and outcomes out."""

    def __init__(self, channel: grpc.Channel, bundle: Bundle) -> None:
        self._client = StreamClient(channel, hello(bundle))
        self._client.receive()

    def send(self, frame: Frame, deadline_s: float | None = None) -> None:
        self._client.send(replace(frame, deadline_ms=round((deadline_s or 0) * 1e3)))

    def receive(self) -> Ended:
        try:
            while (message := self._client.receive()).HasField("draining"):
                self._client.close()
        except grpc.RpcError as error:
            return code_of(error) or error.code().name, None
        reply = reply_from_wire(message.outcome)
        return (reply.error.code, None) if reply.error else (OK, reply.outputs["logits"])

    def cancel(self) -> None:
        self._client.call.cancel()

    def close(self) -> None:
        self._client.close()


def oip_request(bundle: Bundle, frame: Frame, timeout_us: int = 0) -> oip_pb2.ModelInferRequest:
    element = pb.InferRequest(bundle=bundle.digest, frame=frame_to_wire(frame)).SerializeToString()
    request = oip_pb2.ModelInferRequest(model_name="net.split", id=str(frame.id))
    tensor = request.inputs.add(name="FRAME", datatype="BYTES", shape=[1, 1])
    tensor.contents.bytes_contents.append(element)
    if timeout_us:
        request.parameters["timeout"].int64_param = timeout_us
    return request


def oip_logits(response: oip_pb2.ModelInferResponse) -> np.ndarray:
    return np.frombuffer(response.raw_output_contents[0], np.float32)


class Oip(Unary):
    """`ModelInfer`."""

    def __init__(self, channel: grpc.Channel, bundle: Bundle) -> None:
        super().__init__(channel, bundle)
        self._call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            oip_pb2.ModelInferRequest.SerializeToString,
            oip_pb2.ModelInferResponse.FromString,
        )

    def send(self, frame: Frame, deadline_s: float | None = None) -> None:
        self._calls.append(self._call.future(oip_request(self._bundle, frame), timeout=deadline_s))

    def receive(self) -> Ended:
        try:
            return OK, oip_logits(self._calls.pop(0).result())
        except grpc.FutureCancelledError:
            return "CANCELLED", None
        except grpc.RpcError as error:
            return code_of(error) or error.code().name, None


class OipStream:
    """`ModelStreamInfer`."""

    def __init__(self, channel: grpc.Channel, bundle: Bundle) -> None:
        self._bundle = bundle
        self._outgoing: SimpleQueue[oip_pb2.ModelInferRequest | None] = SimpleQueue()
        method = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            oip_pb2.ModelInferRequest.SerializeToString,
            oip_pb2.ModelStreamInferResponse.FromString,
        )
        self._call = method(iter(self._outgoing.get, None))

    def send(self, frame: Frame, deadline_s: float | None = None) -> None:
        self._outgoing.put(oip_request(self._bundle, frame, round((deadline_s or 0) * 1e6)))

    def receive(self) -> Ended:
        try:
            answer = next(self._call)
        except grpc.RpcError as error:
            return code_of(error) or error.code().name, None
        if answer.error_message:
            return answer.error_message, None
        return OK, oip_logits(answer.infer_response)

    def cancel(self) -> None:
        self._call.cancel()

    def close(self) -> None:
        self._outgoing.put(None)


WAYS = [Unary, Stream, Oip, OipStream]


class Place:
    """A server process and a channel to it."""

    def __init__(self, process, address: str, metrics_port: int, bundle: Bundle) -> None:
        self.process, self._metrics_port, self._bundle = process, metrics_port, bundle
        self.channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])

    def way(self, kind):
        return kind(self.channel, self._bundle)

    def bytes_in_flight(self) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/status.json", timeout=10) as answer:
            return json.load(answer)["bytes_in_flight"]


@pytest.fixture(scope="module")
def shared_place(bundle: Bundle) -> Iterator[Place]:
    yield from places(bundle)


@pytest.fixture
def own_place(bundle: Bundle) -> Iterator[Place]:
    yield from places(bundle)


def places(bundle: Bundle) -> Iterator[Place]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ("--metrics-port", port, "--max-wait", 30, "--drain", 20)
    with server_process(bundle.root, *options) as (process, address):
        place = Place(process, address, port, bundle)
        yield place
        place.channel.close()


@pytest.mark.parametrize("kind", WAYS)
def test_ok(shared_place: Place, frames: Frames, kind) -> None:
    way = shared_place.way(kind)
    made = [frames.make(i, picture, i % 3) for i, picture in enumerate(pictures(3))]
    for frame in made:
        way.send(frame)
    ended = [way.receive() for _ in made]
    assert [code for code, _ in ended] == [OK] * 3
    got, expected = np.stack([logits for _, logits in ended]), np.stack([frames.expected(frame) for frame in made])
    if kind is Stream:  # in the order in which they are ready
        got, expected = (values[np.lexsort(values.T)] for values in (got, expected))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    way.close()


@pytest.mark.parametrize("kind", WAYS)
def test_cancel(shared_place: Place, frames: Frames, kind) -> None:
    way = shared_place.way(kind)
    for i in range(6):
        way.send(frames.make(i, pictures(1)[0]))
    deadline = time.monotonic() + 20
    while not shared_place.bytes_in_flight():
        assert time.monotonic() < deadline
    way.cancel()
    assert way.receive()[0] == "CANCELLED"
    while shared_place.bytes_in_flight():
        assert time.monotonic() < deadline, "what nobody waits for is still there"
        time.sleep(0.05)
    way.close()


@pytest.mark.parametrize("kind", WAYS)
def test_deadline(shared_place: Place, frames: Frames, kind) -> None:
    busy, way = shared_place.way(Stream), shared_place.way(kind)
    frame = frames.make(0, pictures(1)[0])
    busy.send(frame)
    while not shared_place.bytes_in_flight():
        pass
    time.sleep(0.05)  # it runs now, and will for longer than the other's time
    way.send(frame, deadline_s=0.05)
    code, _ = way.receive()
    # Turned away at once where the wait is known to be too long, told when the time is over otherwise.
    assert any(name in code.lower() for name in ("deadline", "overloaded", "queue")), code
    assert busy.receive()[0] == OK
    busy.close()
    way.close()


@pytest.mark.parametrize("kind", WAYS)
def test_error(shared_place: Place, frames: Frames, kind) -> None:
    way = shared_place.way(kind)
    good = frames.make(0, pictures(1)[0])
    way.send(replace(good, checksum=good.checksum ^ 1))
    assert "checksum" in way.receive()[0]
    way.send(good)
    assert way.receive()[0] == OK, "and the way is still open"
    way.close()


@pytest.mark.parametrize("kind", WAYS)
def test_drain(own_place: Place, frames: Frames, kind) -> None:
    way = own_place.way(kind)
    for i in range(3):
        way.send(frames.make(i, pictures(1)[0]))
    while not own_place.bytes_in_flight():
        pass
    time.sleep(0.2)  # the other two are on the same connection, right behind
    own_place.process.terminate()
    assert [way.receive()[0] for _ in range(3)] == [OK] * 3, "what was taken is answered"
    way.close()
    assert own_place.process.wait(20) == 0


@pytest.mark.parametrize("kind", WAYS)
def test_kill(own_place: Place, frames: Frames, kind) -> None:
    way = own_place.way(kind)
    way.send(frames.make(0, pictures(1)[0]))
    while not own_place.bytes_in_flight():
        pass
    own_place.process.kill()
    assert way.receive()[0] == "UNAVAILABLE"
    way.close()
