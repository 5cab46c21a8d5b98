"""Bundles that come, change and go while the server serves."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from bundles import make_bundle, pictures
from grpc_health.v1 import health_pb2, health_pb2_grpc
from narrows.protos import split_pb2 as pb
from narrows.protos import split_pb2_grpc
from narrows.runtime.bundle import Bundle
from narrows.runtime.session import SessionOptions
from narrows.server import BatchOptions, ServeOptions, ServerThread
from processes import server_process
from server_client import Frames, code_of, hello, stream


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process or thread does."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def served(address: str) -> dict[str, str]:
    with grpc.insecure_channel(address) as channel:
        models = split_pb2_grpc.SplitInferenceStub(channel).Describe(pb.DescribeRequest()).models
    return {model.name: model.bundle for model in models}


def tails() -> int:
    return sum(thread.name.startswith("net/") for thread in threading.enumerate())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "bundles" / "net", "net", seed=1)
    return tmp_path / "bundles"


@pytest.fixture
def server(folder: Path) -> Iterator[ServerThread]:
    options = ServeOptions(folder, port=0, session=SessionOptions(threads=1), batch=BatchOptions(learn_s=0))
    with ServerThread(options) as thread:
        yield thread


def test_old_streams_keep_their_version_and_new_ones_get_the_new(server: ServerThread, folder: Path) -> None:
    kept = Bundle.open(shutil.copytree(folder / "net", folder.parent / "kept"))
    old_frames = Frames(kept)
    workers = tails()
    with stream(server.address, hello(kept)) as before:
        before.receive()
        new = make_bundle(folder / "net", "net", seed=2)
        server.look()
        until(lambda: served(server.address) == {"net": new.digest})
        assert tails() == 2 * workers, "both are loaded"
        for frames, client in ((old_frames, before), (Frames(new), None)):
            frame = frames.make(1, pictures(1)[0])
            if client is None:
                with stream(server.address, hello(new)) as fresh:
                    fresh.receive()
                    fresh.send(frame)
                    reply = fresh.reply()
            else:
                client.send(frame)
                reply = client.reply()
            np.testing.assert_allclose(reply.outputs["logits"], frames.expected(frame), rtol=1e-4, atol=1e-5)
        with stream(server.address, hello(kept)) as late, pytest.raises(grpc.RpcError) as caught:
            late.receive()
        assert code_of(caught.value) == "bundle-mismatch"
        assert kept.digest in caught.value.details()
        assert new.digest in caught.value.details()
    until(lambda: tails() == workers)


def test_replacing_under_load_loses_no_frame(server: ServerThread, folder: Path) -> None:
    kept = Bundle.open(shutil.copytree(folder / "net", folder.parent / "kept"))
    frames = Frames(kept)
    made = [frames.make(i, picture, i % 3) for i, picture in enumerate(pictures(300))]
    with stream(server.address, hello(kept)) as client:
        client.receive()
        for seed, first in enumerate(range(0, len(made), 30), 2):
            for frame in made[first : first + 30]:
                client.send(frame)
            make_bundle(folder / "net", "net", seed=seed)
            server.look()
            for frame_id, reply in client.replies(30).items():
                assert reply.error is None
                expected = frames.expected(made[frame_id])
                np.testing.assert_allclose(reply.outputs["logits"], expected, rtol=1e-4, atol=1e-5)


def test_versions_beside_each_other(server: ServerThread, folder: Path) -> None:
    only = served(server.address)["net"]
    other = make_bundle(folder / "more" / "v1", "other", seed=3)
    newer = make_bundle(folder / "more" / "v2", "other", seed=4)
    server.look()
    until(lambda: served(server.address) == {"net": only, "other": newer.digest})
    for bundle in (other, newer):
        with stream(server.address, hello(bundle)) as client:
            assert client.receive().HasField("welcome"), "devices with either half are served"
    with grpc.insecure_channel(server.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        assert check(health_pb2.HealthCheckRequest(service="other")).status == health_pb2.HealthCheckResponse.SERVING
        shutil.rmtree(folder / "more")
        server.look()
        until(lambda: served(server.address) == {"net": only})
        gone = check(health_pb2.HealthCheckRequest(service="other")).status
        assert gone == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def test_a_head_is_handed_out_whole_although_its_folder_has_another(server: ServerThread, folder: Path) -> None:
    first = served(server.address)["net"]
    make_bundle(folder / "net", "net", seed=5)  # replaced on disk, not looked at yet
    with grpc.insecure_channel(server.address) as channel:
        chunks = split_pb2_grpc.SplitInferenceStub(channel).FetchHead(pb.FetchHeadRequest(model="net"))
        archive = b"".join([chunk.data for chunk in chunks])
    (folder.parent / "head.zip").write_bytes(archive)
    assert Bundle.open(folder.parent / "head.zip", "device").digest == first


def test_sighup_has_a_process_look_again(folder: Path) -> None:
    with server_process(folder) as (process, address):
        other = make_bundle(folder / "other", "other", seed=6)
        process.send_signal(signal.SIGHUP)
        until(lambda: served(address).get("other") == other.digest)
        process.terminate()
        assert process.wait(10) == 0


def test_a_watched_folder_needs_no_telling(folder: Path) -> None:
    options = ServeOptions(
        folder, port=0, session=SessionOptions(threads=1), batch=BatchOptions(learn_s=0), watch_s=0.05
    )
    with ServerThread(options) as server:
        other = make_bundle(folder / "other", "other", seed=7)
        until(lambda: served(server.address).get("other") == other.digest)
