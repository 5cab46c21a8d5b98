"""Several tails behind one cut: encoded once, sent once, answered by those that were asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import run

import grpc
import numpy as np
import pytest
from bundles import CLASSES, pictures
from narrows.device import Device, DeviceOptions
from narrows.protos import split_pb2 as pb
from narrows.protos import split_pb2_grpc
from narrows.runtime.answer import Form, Wanted
from narrows.runtime.bundle import Bundle
from narrows.runtime.errors import GoldenError, NarrowsError, QualityError
from narrows.runtime.frame import FrameCodec
from narrows.runtime.halves import Head, Tail
from narrows.runtime.manifest import parse
from narrows.runtime.wire import frame_to_wire
from narrows.server import ServeOptions, ServerThread
from server_client import Frames, hello, stream
from tail_bundles import make_tail_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tail_bundle(tmp_path_factory.mktemp("tails") / "tasks")


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[ServerThread]:
    with ServerThread(ServeOptions(bundle.root, port=0, metrics_port=0)) as server:
        yield server


def expected(bundle: Bundle, picture: np.ndarray, quality: int, tail: str) -> dict[str, np.ndarray]:
    cut = bundle.manifest.cuts[0]
    symbols = Head(bundle, cut).run([picture], quality).symbols
    return Tail(bundle, cut, name=tail).run([symbols], [quality])[0]


def test_one_payload_is_answered_by_every_tail_that_was_asked_for(bundle: Bundle, server: ServerThread) -> None:
    with Device(bundle, server.address, tails=("segment", "classify", "count")) as device:
        outcomes = list(device.stream(pictures(12)))
        sent = device.counters.sent
    assert sent == len(outcomes) == 12
    for picture, outcome in zip(pictures(12), outcomes, strict=True):
        assert list(outcome.answers) == ["segment", "classify", "count"]
        for tail, answer in outcome.answers.items():
            want = expected(bundle, picture, outcome.point.quality, tail)
            assert answer.outputs.keys() == want.keys()
            for name, array in want.items():
                np.testing.assert_allclose(answer.outputs[name], array, rtol=1e-5, atol=1e-5)
        assert outcome.outputs.keys() == {"mask"}  # the first that was named
        assert outcome.answers["count"].top[0].label.startswith("count ")
        assert outcome.answers["classify"].top[0].label.startswith("class ")
        assert outcome.answers["segment"].top == ()


def test_who_names_no_tail_gets_the_cuts_own(bundle: Bundle, server: ServerThread) -> None:
    with Device(bundle, server.address) as device:
        outcome = device.infer(pictures(1)[0])
    assert outcome.answers == {}
    assert outcome.outputs.keys() == {"logits"}
    assert outcome.outputs["logits"].shape == (CLASSES,)


def test_the_best_classes_alone_come_from_every_tail_that_has_some(bundle: Bundle, server: ServerThread) -> None:
    options = DeviceOptions(wanted=Wanted(Form.TOP, 2, tails=("classify", "segment")))
    with Device(bundle, server.address, options) as device:
        outcome = device.infer(pictures(1)[0])
    assert len(outcome.top) == 2
    assert outcome.outputs == {}
    assert outcome.answers["segment"].outputs.keys() == {"mask"}
    assert outcome.to_json()["tails"]["classify"] == outcome.to_json()["top"]


def test_a_frame_is_decoded_once_and_counted_in_every_tail(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    unpack = FrameCodec.unpack
    monkeypatch.setattr(FrameCodec, "unpack", lambda self, frame: decoded.append(frame) or unpack(self, frame))
    with (
        ServerThread(ServeOptions(bundle.root, port=0)) as server,
        Device(bundle, server.address, tails=("classify", "segment", "count")) as device,
    ):
        assert [outcome.outcome for outcome in device.stream(pictures(5))] == ["ok"] * 5
    assert len(decoded) == 5


def test_unknown_tails_are_refused_at_both_ends(bundle: Bundle, server: ServerThread) -> None:
    with pytest.raises(QualityError, match="classify, segment, count"):
        Device(bundle, server.address, tails=("depth",))
    frame = Frames(bundle).make(1, pictures(1)[0])
    with stream(server.address, hello(bundle, answer=pb.Answer(tails=["depth"]))) as client:
        assert client.receive().HasField("welcome")
        client.send(frame)
        reply = client.reply()
    assert reply.error is not None
    assert reply.error.code == "quality"
    with stream(server.address, hello(bundle, answer=pb.Answer(tails=["count"] * 2))) as client:
        with pytest.raises(grpc.RpcError) as caught:
            client.receive()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_one_bad_frame_among_several_tails_ends_once_and_alone(bundle: Bundle, server: ServerThread) -> None:
    frames = Frames(bundle)
    good, bad = frames.make(1, pictures(1)[0]), replace(frames.make(2, pictures(1)[0]), checksum=7)
    with stream(server.address, hello(bundle, answer=pb.Answer(tails=["segment", "count"]))) as client:
        client.receive()
        for frame in (bad, good, bad):
            client.send(replace(frame, id=frame.id + (10 if frame is bad else 0)))
            reply = client.reply()
            assert (reply.error.code if reply.error else "ok") == ("checksum" if frame is bad else "ok")
        client.close()
        assert list(client.call) == []  # nothing is said twice


def test_describe_names_the_tails(bundle: Bundle, server: ServerThread) -> None:
    with grpc.insecure_channel(server.address) as channel:
        said = split_pb2_grpc.SplitInferenceStub(channel).Describe(pb.DescribeRequest())
    assert list(said.models[0].cuts[0].tails) == ["classify", "segment", "count"]


def test_every_tails_golden_vectors_are_tried(tmp_path: Path) -> None:
    wrong = make_tail_bundle(tmp_path / "wrong", golden_error=0.5)
    Tail(wrong, wrong.manifest.cuts[0])
    with pytest.raises(GoldenError):
        Tail(wrong, wrong.manifest.cuts[0], name="segment")
    with pytest.raises(NarrowsError), ServerThread(ServeOptions(wrong.root, port=0)):
        pass


def test_a_manifest_that_contradicts_itself_is_refused(bundle: Bundle) -> None:
    text = json.loads((bundle.root / "manifest.json").read_text())
    text["cuts"][0]["tail_name"] = "segment"
    with pytest.raises(NarrowsError, match="two tails"):
        parse(json.dumps(text).encode(), "here")
    text["cuts"][0]["tail_name"] = "classify"
    text["cuts"][0]["further_tails"]["segment"]["graph"] = "elsewhere.onnx"
    with pytest.raises(NarrowsError, match="not listed"):
        parse(json.dumps(text).encode(), "here")


def test_the_command_line_asks_for_tails(bundle: Bundle, server: ServerThread, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", image=np.stack(pictures(2)))
    command = [sys.executable, "-m", "narrows", "run", str(bundle.root), "--server", server.address, "--json"]
    options = ["--input", str(tmp_path / "in.npz"), "--tail", "classify", "--tail", "segment"]
    saved = ["--save-outputs", str(tmp_path / "out")]
    done = run([*command, *options, *saved], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [list(line["tails"]) for line in lines] == [["classify", "segment"]] * 2
    with np.load(sorted((tmp_path / "out").iterdir())[0]) as arrays:
        assert set(arrays) == {"classify/logits", "segment/mask"}


def test_an_unmodified_triton_client_chooses_tails_by_their_outputs(bundle: Bundle, server: ServerThread) -> None:
    triton = pytest.importorskip("tritonclient.grpc", reason="needs pip install 'tritonclient[grpc]'")
    picture = pictures(1)[0]
    element = pb.InferRequest(bundle=bundle.digest, frame=frame_to_wire(Frames(bundle).make(1, picture)))
    tensor = triton.InferInput("FRAME", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[element.SerializeToString()]], object))
    wanted = ["segment/mask", "logits"]
    with triton.InferenceServerClient(server.address) as client:
        names = [output.name for output in client.get_model_metadata("tasks.split").outputs]
        assert names == ["logits", "segment/mask", "count/logits"]
        result = client.infer("tasks.split", [tensor], outputs=[triton.InferRequestedOutput(name) for name in wanted])
    mask, logits = (expected(bundle, picture, 1, tail) for tail in ("segment", "classify"))
    np.testing.assert_allclose(result.as_numpy("segment/mask")[0], mask["mask"], rtol=1e-5)
    np.testing.assert_allclose(result.as_numpy("logits")[0], logits["logits"], rtol=1e-5, atol=1e-5)
    assert result.as_numpy("count/logits") is None
