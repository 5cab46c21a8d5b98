"""Offloading: pictures and plain tensors for the uncut model."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
from bundles import SIZE, make_bundle, pictures
from narrows.runtime.bundle import Bundle
from narrows.runtime.frame import CodedTensor, Limits, Mode, payload_checksum, whole_frame
from narrows.runtime.session import SessionOptions
from narrows.server import BatchOptions, ServeOptions, ServerThread
from PIL import Image
from server_client import Frames, StreamClient, hello, stream
from whole_bundles import with_whole

MAX_PIXELS = 40_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles")
    return with_whole(make_bundle(folder / "plain"), folder / "whole")


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[ServerThread]:
    options = ServeOptions(
        bundle.root,
        port=0,
        limits=Limits(max_elements=3 * MAX_PIXELS),
        session=SessionOptions(threads=1),
        batch=BatchOptions(learn_s=0),
    )
    with ServerThread(options) as thread:
        yield thread


@pytest.fixture
def client(server: ServerThread, bundle: Bundle) -> Iterator[StreamClient]:
    with stream(server.address, hello(bundle)) as one:
        one.receive()
        yield one


def whole_model(bundle: Bundle, picture: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(bundle.file("local.onnx")), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": picture[None]})[0][0]


def encoded(picture: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


def offload(frame_id: int, payload: bytes):
    return whole_frame(frame_id, Mode.OFFLOAD, [CodedTensor(payload)])


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 90})])
def test_pictures_go_through_the_whole_model(client: StreamClient, bundle: Bundle, kind: str, options) -> None:
    payloads = [encoded(picture, kind, **options) for picture in pictures(6)]
    for i, payload in enumerate(payloads):
        client.send(offload(i, payload))
    for frame_id, reply in client.replies(6).items():
        seen = np.asarray(Image.open(io.BytesIO(payloads[frame_id])))
        expected = whole_model(bundle, seen)
        np.testing.assert_allclose(reply.outputs["logits"], expected, rtol=1e-4, atol=1e-5)


def test_a_picture_of_another_size_is_fitted(client: StreamClient, bundle: Bundle) -> None:
    large = np.kron(pictures(1)[0], np.ones((4, 4, 1), np.uint8))
    client.send(offload(1, encoded(large, "PNG")))
    reply = client.reply()
    assert reply.error is None
    assert np.argmax(reply.outputs["logits"]) == np.argmax(whole_model(bundle, pictures(1)[0]))


def test_split_and_whole_frames_share_a_stream(client: StreamClient, bundle: Bundle) -> None:
    frames = Frames(bundle)
    split = frames.make(1, pictures(1)[0], quality=2)
    client.send(split)
    client.send(offload(2, encoded(pictures(1)[0], "PNG")))
    replies = client.replies(2)
    np.testing.assert_allclose(replies[1].outputs["logits"], frames.expected(split), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(replies[2].outputs["logits"], whole_model(bundle, pictures(1)[0]), rtol=1e-4, atol=1e-5)


def test_plain_tensors(client: StreamClient, bundle: Bundle) -> None:
    picture = pictures(1)[0]
    frame = whole_frame(1, Mode.TENSORS, [CodedTensor(picture.tobytes(), picture.shape)])
    client.send(frame)
    np.testing.assert_allclose(client.reply().outputs["logits"], whole_model(bundle, picture), rtol=1e-4, atol=1e-5)


BOMB = encoded(np.zeros((1000, 1000, 3), np.uint8), "PNG")
PNG = encoded(pictures(1)[0], "PNG")
SHAPE = (SIZE, SIZE, 3)


@pytest.mark.parametrize(
    ("mode", "tensors", "code"),
    [
        (Mode.OFFLOAD, [CodedTensor(b"no picture at all")], "source"),
        (Mode.OFFLOAD, [CodedTensor(PNG[: len(PNG) // 2])], "source"),
        (Mode.OFFLOAD, [CodedTensor(BOMB)], "source"),
        (Mode.OFFLOAD, [CodedTensor(encoded(pictures(1)[0], "BMP"))], "source"),
        (Mode.OFFLOAD, [CodedTensor(encoded(pictures(1)[0], "TIFF"))], "source"),
        (Mode.OFFLOAD, [CodedTensor(PNG), CodedTensor(PNG)], "frame"),
        (Mode.TENSORS, [], "shape"),
        (Mode.TENSORS, [CodedTensor(bytes(10), SHAPE)], "shape"),
        (Mode.TENSORS, [CodedTensor(bytes(12), (2, 2, 3))], "shape"),
        (Mode.TENSORS, [CodedTensor(b"", (1 << 31, 1 << 31, 3))], "frame-too-large"),
    ],
)
def test_what_is_no_input_costs_itself_alone(client: StreamClient, mode: Mode, tensors, code: str) -> None:
    assert len(BOMB) < 10_000, "small to send, large to decode"
    client.send(whole_frame(1, mode, tensors))
    client.send(offload(2, PNG))
    replies = client.replies(2)
    assert replies[1].error.code == code
    assert replies[2].error is None


def test_a_damaged_payload_is_found_out(client: StreamClient) -> None:
    frame = offload(1, PNG)
    client.send(replace(frame, checksum=payload_checksum(frame.tensors) ^ 1))
    assert client.reply().error.code == "checksum"


def test_a_bundle_without_its_whole_model_says_so(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make_bundle(tmp_path / "plain")
    options = ServeOptions(plain.root, port=0, session=SessionOptions(threads=1), batch=BatchOptions(learn_s=0))
    with ServerThread(options) as server, stream(server.address, hello(plain)) as client:
        client.receive()
        client.send(offload(1, PNG))
        error = client.reply().error
    assert error.code == "frame"
    assert "whole model" in str(error)
