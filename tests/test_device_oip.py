"""A device whose tail is held by a stock server of the Open Inference Protocol: our own, asked the way that any is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack
from dataclasses import replace
from json import loads
from pathlib import Path
from subprocess import run

import grpc
import numpy as np
import pytest
from bundles import SIZE, make_bundle, pictures
from narrows.device import Device, DeviceOptions, OpenInference
from narrows.protos import oip_pb2 as pb
from narrows.runtime.answer import Form, Wanted
from narrows.runtime.bundle import Bundle
from narrows.runtime.errors import BundleMismatchError, ModelNotFoundError, UsageError
from narrows.runtime.halves import Head, Tail
from narrows.runtime.oip import SERVICE
from narrows.server import ServeOptions, ServerThread


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("oip") / "tiny")


@pytest.fixture(scope="module")
def address(bundle: Bundle) -> Iterator[str]:
    with ServerThread(ServeOptions(bundle.root, port=0)) as server:
        yield server.address


OIP = DeviceOptions(open_inference=OpenInference(), timeout_s=5)


def expected(bundle: Bundle, picture: np.ndarray, quality: int) -> np.ndarray:
    cut = bundle.manifest.cuts[0]
    return Tail(bundle, cut).run([Head(bundle, cut).run([picture], quality).symbols], [quality])[0]["logits"]


@pytest.mark.parametrize("quality", [0, 2])
def test_the_symbols_go_as_they_are_and_the_answer_is_the_tails(bundle: Bundle, address: str, quality: int) -> None:
    with Device(bundle, address, OIP) as device:
        outcomes = list(device.stream(pictures(20), quality=quality))
    for picture, outcome in zip(pictures(20), outcomes, strict=True):
        assert outcome.error is None
        assert outcome.payload_bytes == 8 * (SIZE // 2) ** 2
        np.testing.assert_allclose(outcome.outputs["logits"], expected(bundle, picture, quality), rtol=1e-5, atol=1e-5)


def test_the_best_classes_are_found_on_the_device(bundle: Bundle, address: str) -> None:
    with Device(bundle, address, replace(OIP, wanted=Wanted(Form.TOP, 3))) as device:
        outcome = device.infer(pictures(1)[0])
    logits = expected(bundle, pictures(1)[0], 2)
    assert [best.index for best in outcome.top] == list(np.argsort(-logits)[:3])
    assert outcome.outputs == {}


def test_a_server_that_goes_and_comes_back_loses_nothing(bundle: Bundle) -> None:
    with ExitStack() as devices:
        with ServerThread(ServeOptions(bundle.root, port=0)) as first:
            device = devices.enter_context(Device(bundle, first.address, OIP))
            assert device.infer(pictures(1)[0]).error is None
        with ServerThread(ServeOptions(bundle.root, port=int(first.address.rpartition(":")[2]))):
            assert [outcome.outcome for outcome in device.stream(pictures(5))] == ["ok"] * 5


def test_what_is_no_tail_of_this_bundle_is_refused_by_name(bundle: Bundle, address: str) -> None:
    other = replace(OIP, open_inference=OpenInference("tiny.split"))
    with Device(bundle, address, other) as device:
        assert isinstance(device.infer(pictures(1)[0]).error, BundleMismatchError)
    missing = replace(OIP, open_inference=OpenInference("nothing"))
    with Device(bundle, address, missing) as device:
        assert isinstance(device.infer(pictures(1)[0]).error, ModelNotFoundError)


def test_one_tail_and_no_pictures(bundle: Bundle) -> None:
    for changes in ({"offload": 80}, {"wanted": Wanted(tails=("main",))}):
        with pytest.raises(UsageError, match="one tail"):
            replace(OIP, **changes)


class _Stock:
    """A server that is none of ours: it answers with typed contents, wants an axis more for the quality, is busy."""

    def __init__(self, bundle: Bundle) -> None:
        self._tail = Tail(bundle, bundle.manifest.cuts[0])
        self.calls = 0

    def metadata(self, request: pb.ModelMetadataRequest, context: grpc.ServicerContext) -> pb.ModelMetadataResponse:
        tensor = pb.ModelMetadataResponse.TensorMetadata
        symbols = tensor(name="features.symbols", datatype="UINT8", shape=[-1, 8, 8, 8])
        return pb.ModelMetadataResponse(
            name=request.name, inputs=[symbols, tensor(name="quality", datatype="INT32", shape=[-1, 1])]
        )

    def infer(self, request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
        self.calls += 1
        if self.calls == 2:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        if self.calls == 3:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
        assert list(request.inputs[1].shape) == [1, 1]
        symbols = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(request.inputs[0].shape)
        (quality,) = np.frombuffer(request.raw_input_contents[1], "<i4")
        logits = self._tail.run([symbols], [quality])[0]["logits"]
        response = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
        output = response.outputs.add(name="logits", datatype="FP32", shape=[1, *logits.shape])
        output.contents.fp32_contents.extend(logits.tolist())
        return response


def test_a_strangers_server(bundle: Bundle) -> None:
    stock = _Stock(bundle)
    handler = grpc.unary_unary_rpc_method_handler
    methods = {
        "ModelMetadata": handler(
            stock.metadata, pb.ModelMetadataRequest.FromString, pb.ModelMetadataResponse.SerializeToString
        ),
        "ModelInfer": handler(stock.infer, pb.ModelInferRequest.FromString, pb.ModelInferResponse.SerializeToString),
    }
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        with Device(bundle, address, replace(OIP, open_inference=OpenInference("tail"))) as device:
            outcomes = [device.infer(picture) for picture in pictures(4)]
            assert device.counters.connections == 1  # a refused frame is no lost connection
    finally:
        server.stop(None).wait()
    assert [outcome.outcome for outcome in outcomes] == ["ok", "overloaded", "frame", "ok"]
    np.testing.assert_allclose(outcomes[0].outputs["logits"], expected(bundle, pictures(1)[0], 2), rtol=1e-5)


def test_the_command_line(bundle: Bundle, address: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", image=np.stack(pictures(3)))
    command = [sys.executable, "-m", "narrows", "run", str(bundle.root), "--server", address, "--json"]
    options = ["--input", str(tmp_path / "in.npz"), "--protocol", "oip", "--model", "tiny.tail"]
    done = run([*command, *options], capture_output=True, text=True, check=True)
    assert [loads(line)["outcome"] for line in done.stdout.splitlines()] == ["ok"] * 3
