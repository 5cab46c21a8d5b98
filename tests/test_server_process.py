"""Real server processes: draining, killing, and addresses that cannot be."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from bundles import make_bundle, pictures
from grpc_health.v1 import health_pb2, health_pb2_grpc
from narrows.runtime.bundle import Bundle
from narrows.runtime.errors import UsageError
from narrows.server import ServeOptions, ServerThread
from processes import server_process
from server_client import Frames, code_of, hello, stream


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def frames(bundle: Bundle) -> Frames:
    return Frames(bundle)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(bundle: Bundle, frames: Frames, number: signal.Signals) -> None:
    with server_process(bundle.root, "--drain", 5) as (process, address), stream(address, hello(bundle)) as client:
        client.receive()
        made = [frames.make(i, picture) for i, picture in enumerate(pictures(40))]
        for frame in made[:20]:
            client.send(frame)
        first = client.reply()
        assert first.error is None
        process.send_signal(number)
        outcomes, drained = {first.id: first}, False
        while not (drained and len(outcomes) == 21):
            message = client.receive()
            if message.HasField("draining"):
                drained = True
                client.send(made[30])
            else:
                outcomes[message.outcome.id] = message.outcome
        client.close()
        assert outcomes.pop(30).error.code == "draining"
        assert set(outcomes) == set(range(20)), "what was taken is answered"
        with pytest.raises(StopIteration):
            client.receive()
        assert client.call.code() is grpc.StatusCode.OK
        assert process.wait(10) == 0


def test_a_device_that_does_not_listen_is_not_waited_for(bundle: Bundle) -> None:
    with server_process(bundle.root, "--drain", 5) as (process, address), stream(address, hello(bundle)) as client:
        client.receive()
        process.terminate()
        assert client.receive().HasField("draining")
        with pytest.raises(StopIteration):
            client.receive()
        assert process.wait(10) == 0


def test_while_draining_health_says_so_and_new_streams_are_refused(bundle: Bundle) -> None:
    with server_process(bundle.root, "--drain", 5) as (process, address), stream(address, hello(bundle)) as client:
        client.receive()
        with grpc.insecure_channel(address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="tiny"))
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            process.terminate()
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            with stream(address, hello(bundle)) as late, pytest.raises(grpc.RpcError) as caught:
                late.receive()
            assert (caught.value.code(), code_of(caught.value)) == (grpc.StatusCode.UNAVAILABLE, "draining")
            assert process.wait(10) == 0


def test_a_killed_server_is_seen_at_once(bundle: Bundle, frames: Frames) -> None:
    with server_process(bundle.root, "--drain", 5) as (process, address), stream(address, hello(bundle)) as client:
        client.receive()
        client.send(frames.make(1, pictures(1)[0]))
        assert client.reply().id == 1
        process.kill()
        with pytest.raises(grpc.RpcError) as caught:
            client.receive()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_that_is_taken(bundle: Bundle, taken_port: int) -> None:
    with (
        pytest.raises(UsageError, match=f"127.0.0.1:{taken_port}"),
        ServerThread(ServeOptions(bundle.root, port=taken_port)),
    ):
        pass


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_other_machines_are_let_in_on_purpose_only(tmp_path: Path, host: str) -> None:
    with pytest.raises(UsageError, match="--insecure"):
        ServeOptions(tmp_path, host=host)
    assert ServeOptions(tmp_path, host=host, insecure=True).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_permission(tmp_path: Path, host: str) -> None:
    assert ServeOptions(tmp_path, host=host).host == host


@pytest.mark.parametrize("changes", [{"port": 70_000}, {"port": -1}, {"drain_s": 0}])
def test_options_that_cannot_be(tmp_path: Path, changes) -> None:
    with pytest.raises(UsageError):
        ServeOptions(tmp_path, **changes)
