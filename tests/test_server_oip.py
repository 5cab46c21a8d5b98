"""An unmodified Triton client against the server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue

import grpc
import numpy as np
import onnxruntime as ort
import pytest
from bundles import SIZE, make_bundle, pictures
from narrows.protos import oip_pb2
from narrows.protos import split_pb2 as pb
from narrows.runtime.bundle import Bundle
from narrows.runtime.session import SessionOptions
from narrows.runtime.wire import frame_to_wire
from narrows.server import BatchOptions, ServeOptions, ServerThread
from narrows.server.engine import SplitEngine
from server_client import Frames
from whole_bundles import with_whole

triton = pytest.importorskip("tritonclient.grpc", reason="needs pip install 'tritonclient[grpc]'")

NAME, SPLIT, TAIL = "tiny", "tiny.split", "tiny.tail"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles")
    return with_whole(make_bundle(folder / "plain", NAME), folder / "v1")


@pytest.fixture(scope="module")
def frames(bundle: Bundle) -> Frames:
    return Frames(bundle)


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[ServerThread]:
    options = ServeOptions(bundle.root, port=0, session=SessionOptions(threads=1), batch=BatchOptions(learn_s=0))
    with ServerThread(options) as thread:
        yield thread


@pytest.fixture
def client(server: ServerThread) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address) as one:
        yield one


def whole_input(images: list[np.ndarray]) -> list[triton.InferInput]:
    tensor = triton.InferInput("image", [len(images), SIZE, SIZE, 3], "UINT8")
    tensor.set_data_from_numpy(np.stack(images))
    return [tensor]


def one_input(name: str, datatype: str, array: np.ndarray) -> list[triton.InferInput]:
    return [triton.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array)]


def split_input(bundle: Bundle, made: list) -> list[triton.InferInput]:
    elements = [pb.InferRequest(bundle=bundle.digest, frame=frame_to_wire(frame)).SerializeToString() for frame in made]
    tensor = triton.InferInput("FRAME", [len(made), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(elements, object).reshape(-1, 1))
    return [tensor]


def whole_model(bundle: Bundle, images: list[np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(str(bundle.file("local.onnx")), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": np.stack(images)})[0]


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    assert client.is_model_ready(SPLIT, "v1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata().name == "narrows"
    metadata = client.get_model_metadata(NAME)
    assert list(metadata.versions) == ["v1"]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("image", "UINT8", [-1, SIZE, SIZE, 3])]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [("logits", "FP32", [-1, 10])]
    split = client.get_model_metadata(SPLIT)
    assert [(t.name, t.datatype, list(t.shape)) for t in split.inputs] == [("FRAME", "BYTES", [-1, 1])]
    config = client.get_model_config(NAME).config
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == (NAME, 32, [SIZE, SIZE, 3])
    index = client.get_model_repository_index()
    assert [(model.name, model.version, model.state) for model in index.models] == [
        (NAME, "v1", "READY"),
        (SPLIT, "v1", "READY"),
        (TAIL, "v1", "READY"),
    ]


@pytest.mark.parametrize("count", [1, 5])
def test_plain_inputs_to_the_whole_model(client: triton.InferenceServerClient, bundle: Bundle, count: int) -> None:
    images = pictures(count)
    result = client.infer(NAME, whole_input(images), request_id="seven")
    np.testing.assert_allclose(result.as_numpy("logits"), whole_model(bundle, images), rtol=1e-4, atol=1e-5)
    assert result.get_response().id == "seven"
    assert result.get_response().model_version == "v1"


def test_frames_to_the_split_model(client: triton.InferenceServerClient, bundle: Bundle, frames: Frames) -> None:
    made = [frames.make(0, picture, i % 3) for i, picture in enumerate(pictures(7))]
    result = client.infer(SPLIT, split_input(bundle, made), outputs=[triton.InferRequestedOutput("logits")])
    expected = np.stack([frames.expected(frame) for frame in made])
    np.testing.assert_allclose(result.as_numpy("logits"), expected, rtol=1e-4, atol=1e-5)


def test_asynchronous_calls(client: triton.InferenceServerClient, bundle: Bundle) -> None:
    done: SimpleQueue = SimpleQueue()
    images = pictures(20)
    for i, image in enumerate(images):
        client.async_infer(
            NAME, whole_input([image]), lambda result, error: done.put((result, error)), request_id=str(i)
        )
    expected = whole_model(bundle, images)
    for _ in images:
        result, error = done.get(timeout=30)
        assert error is None
        number = int(result.get_response().id)
        np.testing.assert_allclose(result.as_numpy("logits")[0], expected[number], rtol=1e-4, atol=1e-5)


def test_a_stream_answers_in_order_and_carries_errors(
    client: triton.InferenceServerClient, bundle: Bundle, frames: Frames
) -> None:
    done: SimpleQueue = SimpleQueue()
    client.start_stream(lambda result, error: done.put((result, error)))
    made = [frames.make(0, picture, 1) for picture in pictures(30)]
    for i, frame in enumerate(made):
        client.async_stream_infer("nowhere" if i == 11 else SPLIT, split_input(bundle, [frame]), request_id=str(i))
    for i, frame in enumerate(made):
        result, error = done.get(timeout=30)
        if i == 11:
            assert "no model 'nowhere'" in str(error)
            continue
        assert error is None
        assert result.get_response().id == str(i)
        np.testing.assert_allclose(result.as_numpy("logits")[0], frames.expected(frame), rtol=1e-4, atol=1e-5)
    client.stop_stream()


def test_a_stream_that_wants_errors_as_its_status(client: triton.InferenceServerClient) -> None:
    done: SimpleQueue = SimpleQueue()
    client.start_stream(lambda result, error: done.put((result, error)), headers={"triton_grpc_error": "true"})
    client.async_stream_infer("nowhere", whole_input(pictures(1)))
    _, error = done.get(timeout=30)
    assert "NOT_FOUND" in str(error.status())
    client.stop_stream()


def test_statistics(client: triton.InferenceServerClient) -> None:
    def counted() -> tuple[int, int, int]:
        (one,) = client.get_inference_statistics(NAME).model_stats
        return one.inference_count, one.inference_stats.success.count, one.inference_stats.compute_infer.ns

    before = counted()
    client.infer(NAME, whole_input(pictures(4)))
    after = counted()
    assert (after[0] - before[0], after[1] - before[1]) == (4, 4)
    assert after[2] > before[2]
    assert {stats.name for stats in client.get_inference_statistics().model_stats} == {NAME, SPLIT, TAIL}


@pytest.mark.parametrize(
    ("model", "version", "inputs", "status"),
    [
        ("other", "", lambda b, f: whole_input(pictures(1)), "NOT_FOUND"),
        (NAME, "v9", lambda b, f: whole_input(pictures(1)), "NOT_FOUND"),
        (NAME, "", lambda b, f: one_input("image", "FP32", np.ones((1, 2), np.float32)), "INVALID"),
        (NAME, "", lambda b, f: one_input("image", "UINT8", np.ones((1, 2), np.uint8)), "INVALID"),
        (NAME, "", lambda b, f: split_input(b, [f]), "INVALID"),
        (SPLIT, "", lambda b, f: whole_input(pictures(1)), "INVALID"),
        (SPLIT, "", lambda b, f: one_input("FRAME", "BYTES", np.array([[b"x"]], object)), "INVALID"),
    ],
)
def test_what_does_not_fit(
    client: triton.InferenceServerClient, bundle: Bundle, frames: Frames, model: str, version: str, inputs, status: str
) -> None:
    frame = frames.make(0, pictures(1)[0])
    with pytest.raises(triton.InferenceServerException) as caught:
        client.infer(model, inputs(bundle, frame), version)
    assert status in str(caught.value.status())


def test_halves_are_not_mixed(client: triton.InferenceServerClient, bundle: Bundle, frames: Frames) -> None:
    element = pb.InferRequest(bundle="0" * 64, frame=frame_to_wire(frames.make(0, pictures(1)[0])))
    tensor = triton.InferInput("FRAME", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[element.SerializeToString()]], object))
    with pytest.raises(triton.InferenceServerException, match=bundle.digest):
        client.infer(SPLIT, [tensor])


def test_a_deadline_and_a_cancellation_reach_the_queue(
    client: triton.InferenceServerClient, bundle: Bundle, frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, run, prepare, batches = threading.Event(), SplitEngine.run, SplitEngine.prepare, []
    decoded = threading.Semaphore(0)

    def held(self, batch):
        assert gate.wait(30)
        batches.append(len(batch))
        return run(self, batch)

    def counted(self, one):
        prepared = prepare(self, one)
        decoded.release()
        return prepared

    monkeypatch.setattr(SplitEngine, "run", held)
    monkeypatch.setattr(SplitEngine, "prepare", counted)
    frame = frames.make(0, pictures(1)[0])
    done: SimpleQueue = SimpleQueue()
    for _ in range(2):  # the first runs, the second is decoded and waits for its run: whatever follows has to queue
        client.async_infer(SPLIT, split_input(bundle, [frame]), lambda result, error: done.put(error))
        assert decoded.acquire(timeout=30)
    with pytest.raises(triton.InferenceServerException) as caught:
        client.infer(SPLIT, split_input(bundle, [frame]), client_timeout=0.2)
    assert "DEADLINE" in str(caught.value.status())
    cancelled = client.async_infer(SPLIT, split_input(bundle, [frame]), lambda result, error: done.put(error))
    cancelled.cancel()
    assert "CANCELLED" in str(done.get(timeout=30).status())
    gate.set()
    assert [done.get(timeout=30), done.get(timeout=30)] == [None, None]
    client.infer(SPLIT, split_input(bundle, [frame]))
    assert sum(batches) == 3, "two that were held and the last; what was late or cancelled was never computed"


def test_typed_contents_are_read_too(server: ServerThread, bundle: Bundle) -> None:
    picture = pictures(1)[0]
    request = oip_pb2.ModelInferRequest(model_name=NAME)
    tensor = request.inputs.add(name="image", datatype="UINT8", shape=[1, SIZE, SIZE, 3])
    tensor.contents.uint_contents.extend(picture.reshape(-1).tolist())
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            oip_pb2.ModelInferRequest.SerializeToString,
            oip_pb2.ModelInferResponse.FromString,
        )
        answer = call(request)
        logits = np.frombuffer(answer.raw_output_contents[0], np.float32)
        np.testing.assert_allclose(logits, whole_model(bundle, [picture])[0], rtol=1e-4, atol=1e-5)
        del tensor.contents.uint_contents[0]
        with pytest.raises(grpc.RpcError, match="do not fill"):
            call(request)


def test_our_messages_are_those_of_the_protocol() -> None:
    from tritonclient.grpc import model_config_pb2, service_pb2

    theirs = {**service_pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}

    def compare(ours, other) -> None:
        for field in ours.fields:
            twin = other.fields_by_number[field.number]
            assert (field.name, field.type, field.is_repeated) == (twin.name, twin.type, twin.is_repeated)
            if field.message_type is not None:
                compare(field.message_type, twin.message_type)

    for name, message in oip_pb2.DESCRIPTOR.message_types_by_name.items():
        compare(message, theirs[name])
