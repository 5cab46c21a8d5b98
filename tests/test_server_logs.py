"""The log as programs read it, and the id that leads from a caller's error to its line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from bundles import make_bundle, pictures
from narrows.protos import split_pb2 as pb
from narrows.protos import split_pb2_grpc
from narrows.runtime.bundle import Bundle
from narrows.runtime.wire import frame_to_wire
from server_client import Frames, StreamClient, hello


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("logs") / "tiny")


@pytest.fixture
def serving(bundle: Bundle) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "narrows", "serve", str(bundle.root), "--port", "0", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--log-format", "json", "--drain", "2"], **pipes) as process:
        yield json.loads(process.stdout.readline())["address"], process
        process.kill()


def log_of(process: subprocess.Popen[str]) -> list[dict]:
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    return [json.loads(line) for line in said.splitlines()]


def test_every_line_is_json_and_says_which_request_it_is_about(
    serving: tuple[str, subprocess.Popen[str]], bundle: Bundle
) -> None:
    address, process = serving
    frames = Frames(bundle)
    with grpc.insecure_channel(address) as channel:
        bad = frame_to_wire(frames.make(1, pictures(1)[0]))
        bad.checksum ^= 1
        with pytest.raises(grpc.RpcError) as caught:
            split_pb2_grpc.SplitInferenceStub(channel).Infer(
                pb.InferRequest(model="tiny", bundle=bundle.digest, frame=bad), metadata=(("x-request-id", "mine-1"),)
            )
        assert dict(caught.value.trailing_metadata())["narrows-request"] == "mine-1"
        with pytest.raises(grpc.RpcError) as caught:
            split_pb2_grpc.SplitInferenceStub(channel).Infer(
                pb.InferRequest(model="other"), metadata=(("x-request-id", 'x" {'),)
            )
        own = dict(caught.value.trailing_metadata())["narrows-request"]
        assert len(own) == 16  # a name that could confuse a log is not taken over
        client = StreamClient(channel, hello(bundle))
        client.receive()
        for number in range(3):
            client.send(frames.make(number, pictures(1)[0]))
        client.replies(3)
        client.close()
        assert list(client.call) == []
    lines = log_of(process)
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    failed = {line["request"]: line["code"] for line in lines if line["message"] == "a call ends in an error"}
    assert failed == {"mine-1": "checksum", own: "usage"}
    begun, ended = (
        next(line for line in lines if line["message"] == f"a stream {what}") for what in ("begins", "ends")
    )
    assert begun["request"] == ended["request"] != ""
    assert (ended["frames"], ended["model"]) == (3, "tiny")


_TRACED = """
import sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
from pathlib import Path
from narrows.device import Device
from narrows.server import ServeOptions, ServerThread
from bundles import pictures
root = Path(sys.argv[1])
with ServerThread(ServeOptions(root, port=0, tracing=True)) as server, Device(root, server.address) as device:
    with trace.get_tracer("user").start_as_current_span("user"):
        assert device.infer(pictures(1)[0]).error is None
spans = {span.name: span for span in exporter.get_finished_spans()}
assert set(spans) == {"user", "narrows frame", "frame", "queue", "decode", "tail"}, set(spans)
assert len({span.context.trace_id for span in spans.values()}) == 1
assert spans["narrows frame"].parent.span_id == spans["user"].context.span_id
assert spans["frame"].parent.span_id == spans["narrows frame"].context.span_id
assert spans["tail"].parent.span_id == spans["frame"].context.span_id
assert spans["narrows frame"].attributes["narrows.provenance"] == "server"
"""


def test_the_servers_spans_lie_in_the_trace_of_the_devices_caller(bundle: Bundle) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="spans need opentelemetry-sdk")
    # A process of its own: a tracer provider can be set once.
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", _TRACED, str(bundle.root)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
