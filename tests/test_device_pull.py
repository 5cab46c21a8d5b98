"""Pulling bundles: whole, in pieces, over a broken link, damaged, and back again."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from bundles import make_bundle, pictures
from faulty import serving
from narrows.device import Device
from narrows.device.pull import PullOptions, newest_digest, pull, roll_back
from narrows.protos import split_pb2 as pb
from narrows.protos import split_pb2_grpc
from narrows.runtime.bundle import Bundle, BundleWriter, sha256_of
from narrows.runtime.errors import BundleError, GoldenError, LinkError, ModelNotFoundError, UsageError
from narrows.runtime.manifest import Half
from narrows.server import ServeOptions, ServerThread

QUICK = PullOptions(patience_s=1.0, chunk_s=0.5)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NARROWS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundles" / "tiny")


class Fetching(split_pb2_grpc.SplitInferenceServicer):
    """Serves an archive in small chunks, and spoils it as told."""

    def __init__(self, bundle: Bundle, archive: Path, faults: list[str]) -> None:
        self.bundle, self.data, self.faults = bundle, archive.read_bytes(), faults
        self.sha256 = sha256_of(archive)
        self.offsets: list[int] = []

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeResponse:  # noqa: N802
        return pb.DescribeResponse(models=[pb.ModelDescription(name="tiny", bundle=self.bundle.digest)])

    def FetchHead(  # noqa: N802
        self, request: pb.FetchHeadRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.FetchHeadChunk]:
        self.offsets.append(request.offset)
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "refuse":
            context.abort(grpc.StatusCode.UNAVAILABLE, "as told")
        data = self.data[request.offset :]
        if fault == "wrong bytes":
            data = bytes(len(data))
        size = len(self.data) if fault != "huge" else 1 << 50
        digest = self.bundle.digest if fault != "other bundle" else "0" * 64
        chunk = pb.FetchHeadChunk(bundle=digest, total_bytes=size, sha256=self.sha256)
        pieces = [data[i : i + 500] for i in range(0, len(data), 500)] or [b""]
        for n, piece in enumerate(pieces):
            if n == 2 and fault == "break":
                context.abort(grpc.StatusCode.UNAVAILABLE, "as told")
            if n == 2 and fault == "end":
                return
            if n == 2 and fault == "stall":
                left = threading.Event()
                context.add_callback(left.set)
                left.wait(30)
            chunk.data = piece
            yield chunk
            chunk = pb.FetchHeadChunk()
        if fault == "too much":
            yield pb.FetchHeadChunk(data=b"more")


@pytest.fixture
def archive(bundle: Bundle, tmp_path: Path) -> Path:
    path = tmp_path / "head.zip"
    bundle.write_archive(path, Half.DEVICE)
    return path


def test_a_pulled_head_works_with_the_server_it_came_from(bundle: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "device" / "tiny"
    with ServerThread(ServeOptions(bundle.root.parent, port=0)) as server:
        assert newest_digest(server.address, "tiny") == bundle.digest
        pulled = pull(server.address, "tiny", target)
        assert pulled.digest == bundle.digest
        assert not (pulled.root / "tail.onnx").exists()
        with Device(target, server.address) as device:
            assert device.infer(pictures(1)[0]).outcome == "ok"
        assert pull(server.address, "tiny", target).digest == bundle.digest  # nothing new


def test_a_transfer_goes_on_where_it_broke_off(bundle: Bundle, archive: Path, tmp_path: Path) -> None:
    server = Fetching(bundle, archive, ["break", "end", "stall"])
    with serving(server) as address:
        assert pull(address, "tiny", tmp_path / "tiny", QUICK).digest == bundle.digest
    assert server.offsets == [0, 1000, 2000, 3000]


def test_what_came_is_kept_for_the_next_process(bundle: Bundle, archive: Path, tmp_path: Path) -> None:
    refusing = Fetching(bundle, archive, ["break", *["refuse"] * 99])
    with serving(refusing) as address, pytest.raises(LinkError):
        pull(address, "tiny", tmp_path / "tiny", PullOptions(patience_s=0.2))
    server = Fetching(bundle, archive, [])
    with serving(server) as address:
        pull(address, "tiny", tmp_path / "tiny")
    assert server.offsets == [1000]


@pytest.mark.parametrize("fault", ["wrong bytes", "huge", "other bundle", "too much"])
def test_a_lying_server_is_refused_and_the_target_stays(
    bundle: Bundle, archive: Path, tmp_path: Path, fault: str
) -> None:
    target = tmp_path / "tiny"
    with serving(Fetching(bundle, archive, [fault])) as address:
        with pytest.raises(BundleError):
            pull(address, "tiny", target, QUICK)
        assert not target.exists()


def test_what_is_not_there_is_told(bundle: Bundle, archive: Path, tmp_path: Path) -> None:
    with serving(Fetching(bundle, archive, [])) as address, pytest.raises(ModelNotFoundError):
        pull(address, "large", tmp_path / "large")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BundleError, match="no link"):
        pull("127.0.0.1:1", "tiny", tmp_path / "folder")
    with pytest.raises(BundleError, match="nothing to roll"):
        roll_back(tmp_path / "nothing")
    with pytest.raises(UsageError):
        PullOptions(patience_s=0)


def test_a_new_version_takes_the_place_and_can_be_rolled_back(bundle: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "device" / "tiny"
    with ServerThread(ServeOptions(bundle.root.parent, port=0)) as server:
        pull(server.address, "tiny", target)
    newer = make_bundle(tmp_path / "newer" / "tiny", seed=5)
    with ServerThread(ServeOptions(newer.root.parent, port=0)) as server:
        assert pull(server.address, "tiny", target).digest == newer.digest
    assert roll_back(target).digest == bundle.digest
    assert roll_back(target).digest == newer.digest


def test_a_bundle_that_this_machine_does_not_reproduce_never_gets_there(bundle: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "device" / "tiny"
    with ServerThread(ServeOptions(bundle.root.parent, port=0)) as server:
        pull(server.address, "tiny", target)
    odd = _unreproducible(bundle, tmp_path)
    with ServerThread(ServeOptions(odd.parent, port=0)) as server, pytest.raises(GoldenError):
        pull(server.address, "tiny", target)
    assert Bundle.open(target, Half.DEVICE).digest == bundle.digest


def _unreproducible(bundle: Bundle, folder: Path) -> Path:
    """A bundle whose head's golden symbols no machine makes; its server's half is sound."""
    target = folder / "odd" / "tiny"
    with BundleWriter(target) as writer:
        for name, entry in bundle.manifest.files.items():
            path = writer.add(name, *entry.halves)
            if name != "golden/head.npz":
                shutil.copy(bundle.file(name), path)
                continue
            with np.load(bundle.file(name)) as arrays:
                odd = {key: array if "input" in key else np.zeros_like(array) for key, array in arrays.items()}
            np.savez(path, **odd)
        return writer.finish(replace(bundle.manifest, files={})).root
