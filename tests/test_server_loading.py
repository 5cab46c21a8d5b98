"""Models loaded and unloaded over the wire, by an unmodified Triton client, where the operator allows it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import make_bundle, pictures
from narrows.device import Device
from narrows.runtime.bundle import Bundle
from narrows.runtime.errors import UsageError
from narrows.runtime.session import SessionOptions
from narrows.server import BatchOptions, ServeOptions, ServerThread
from server_client import Frames, hello, stream

triton = pytest.importorskip("tritonclient.grpc", reason="needs pip install 'tritonclient[grpc]'")
from tritonclient.utils import InferenceServerException  # noqa: E402 - only where there is one

TOKENS = "operator one +load\ngardener two +load tiny\nreader three\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bundles"
    make_bundle(folder / "tiny")
    make_bundle(folder / "other", "other", seed=3)
    return folder


def options(folder: Path, **more) -> ServeOptions:
    return ServeOptions(folder, port=0, session=SessionOptions(threads=1), batch=BatchOptions(learn_s=0), **more)


@pytest.fixture
def server(folder: Path) -> Iterator[ServerThread]:
    with ServerThread(options(folder, allow_load=True, watch_s=0.1)) as server:
        yield server


def states(client: triton.InferenceServerClient) -> dict[str, str]:
    return {model.name: model.state for model in client.get_model_repository_index().models}


def test_a_model_goes_and_comes_back(server: ServerThread, folder: Path) -> None:
    with triton.InferenceServerClient(server.address) as client, Device(folder / "tiny", server.address) as device:
        assert device.infer(pictures(1)[0]).error is None
        client.unload_model("other")
        assert not client.is_model_ready("other.split")
        assert states(client) == {"tiny.split": "READY", "tiny.tail": "READY", "other": "UNAVAILABLE"}
        with pytest.raises(InferenceServerException, match="no model"):
            client.get_model_metadata("other.split")
        client.load_model("other.split")
        assert client.is_model_ready("other.split")
        assert set(states(client).values()) == {"READY"}


def test_a_stream_keeps_the_model_that_it_began_with(server: ServerThread, folder: Path) -> None:
    bundle = Bundle.open(folder / "tiny")
    frame = Frames(bundle).make(1, pictures(1)[0])
    with triton.InferenceServerClient(server.address) as client, stream(server.address, hello(bundle)) as held:
        held.receive()
        client.unload_model("tiny")
        held.send(frame)
        assert held.reply().error is None


def test_what_comes_while_the_server_runs_can_be_loaded_at_once(folder: Path) -> None:
    made = shutil.move(folder / "other", folder.parent / "kept")
    with (
        ServerThread(options(folder, allow_load=True)) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        with pytest.raises(InferenceServerException, match="no bundle of model 'other'"):
            client.load_model("other")
        shutil.move(made, folder / "other")
        client.load_model("other")
        assert client.is_model_ready("other.split")
        (folder / "tiny" / "tail.onnx").write_bytes(b"no graph")
        client.unload_model("tiny")
        with pytest.raises(InferenceServerException, match="log says why") as caught:
            client.load_model("tiny")
        assert str(folder) not in str(caught.value)


def test_nothing_is_loaded_where_nobody_said_so(folder: Path) -> None:
    with ServerThread(options(folder)) as server, triton.InferenceServerClient(server.address) as client:
        for ask in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="allow-load"):
                ask("tiny")
        assert client.is_model_ready("tiny.split")


def test_tokens_say_who_may(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKENS)
    with (
        ServerThread(options(folder, allow_load=True, tokens=tmp_path / "tokens")) as server,
        triton.InferenceServerClient(server.address) as client,
    ):

        def headers(token: str) -> dict[str, str]:
            return {"authorization": f"Bearer {token}"}

        for token, name in (("three", "tiny"), ("two", "other")):
            with pytest.raises(InferenceServerException, match="PERMISSION_DENIED"):
                client.unload_model(name, headers=headers(token))
        with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
            client.unload_model("tiny")
        client.unload_model("tiny", headers=headers("two"))
        client.load_model("tiny", headers=headers("one"))
        assert client.is_model_ready("tiny.split", headers=headers("three"))


def test_no_configuration_and_no_files_come_over_the_wire(server: ServerThread) -> None:
    with (
        triton.InferenceServerClient(server.address) as client,
        pytest.raises(InferenceServerException, match="own folder"),
    ):
        client.load_model("tiny", config="{}", files={"file:1/model.onnx": b"graph"})


def test_loading_from_other_machines_needs_tokens(folder: Path) -> None:
    with pytest.raises(UsageError, match="tokens"):
        ServeOptions(folder, host="0.0.0.0", insecure=True, allow_load=True)
