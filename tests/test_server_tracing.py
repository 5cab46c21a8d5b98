"""Spans of frames join the trace of who sent them."""

from __future__ import annotations

import itertools
from pathlib import Path

import grpc
import pytest
from bundles import make_bundle, pictures
from narrows.protos import split_pb2 as pb
from narrows.protos import split_pb2_grpc
from narrows.runtime.session import SessionOptions
from narrows.runtime.wire import frame_to_wire
from narrows.server import BatchOptions, ServeOptions, ServerThread, app
from server_client import Frames

pytest.importorskip("opentelemetry.sdk", reason="spans need opentelemetry-sdk")

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_spans_join_the_senders_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from narrows.server.tracing import Tracing
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # The process's own provider can be set once only, and other tests may want it.
    monkeypatch.setattr(app.Server, "_trace", lambda self: self.plane.observers.append(Tracing(provider)))
    bundle = make_bundle(tmp_path / "tiny")
    frame = Frames(bundle).make(7, pictures(1)[0], quality=2)
    options = ServeOptions(
        bundle.root, port=0, tracing=True, session=SessionOptions(threads=1), batch=BatchOptions(learn_s=0)
    )
    with ServerThread(options) as server, grpc.insecure_channel(server.address) as channel:
        infer = split_pb2_grpc.SplitInferenceStub(channel).Infer
        request = pb.InferRequest(model="tiny", bundle=bundle.digest, frame=frame_to_wire(frame))
        infer(request, metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),))
        request.frame.checksum ^= 1
        with pytest.raises(grpc.RpcError):
            infer(request)
    spans = exporter.get_finished_spans()
    root = next(span for span in spans if span.name == "frame" and span.parent is not None)
    assert f"{root.context.trace_id:032x}" == TRACE
    assert f"{root.parent.span_id:016x}" == PARENT
    assert (root.attributes["narrows.route"], root.attributes["narrows.quality"]) == ("tiny/features", 2)
    stages = [span for span in spans if span.parent and span.parent.span_id == root.context.span_id]
    assert [span.name for span in stages] == ["queue", "decode", "tail"]
    for before, after in itertools.pairwise(stages):
        assert before.end_time == after.start_time
    assert root.start_time == stages[0].start_time
    failed = next(span for span in spans if span.name == "frame" and span.parent is None)
    assert failed.status.description == "checksum"
