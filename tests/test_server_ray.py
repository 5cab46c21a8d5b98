"""Tails on a real Ray cluster of several nodes: what a device sees, and what it sees of a node that dies.

All nodes are processes of this machine (Ray's own cluster utility). The tests need `pip install 'narrows[ray]'`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from bundles import make_bundle, pictures
from narrows.device import Device, DeviceOptions, Outcome
from narrows.device.pull import pull
from narrows.protos import split_pb2 as pb
from narrows.protos import split_pb2_grpc
from narrows.runtime.bundle import Bundle
from narrows.runtime.errors import BundleMismatchError, NarrowsError, UsageError
from narrows.runtime.session import SessionOptions
from narrows.runtime.wire import frame_to_wire
from narrows.server import BatchOptions, ServeOptions
from narrows.server.ray import RayOptions, check, deploy, models_in
from server_client import Frames, code_of, hello

TOKENS = "everyone open\nother sesame somethingelse\n"
pytestmark = [
    pytest.mark.timeout(400),  # processes by the dozen have to start
    pytest.mark.filterwarnings("ignore"),  # Ray's own; ours are errors in every other test
]
needs_ray = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import ray.serve"], capture_output=True, check=False).returncode != 0,
    reason="needs Ray: pip install 'narrows[ray]'",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Nodes:
    """A cluster: the head has the proxy, the others the replicas."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.workers = [self.cluster.add_node(num_cpus=1) for _ in range(2)]
        self.cluster.wait_for_nodes(timeout=120)
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "bundles"
    make_bundle(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return Bundle.open(folder / "tiny")


@pytest.fixture(scope="module")
def nodes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    import ray
    from ray import serve

    home = tmp_path_factory.mktemp("home")
    # Nothing of Ray's is left in the user's home; the cluster listens to this machine's own processes.
    changed = {"HOME": str(home), "RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    nodes = Nodes()
    ray.init(nodes.cluster.address, log_to_driver=False, configure_logging=False)
    try:
        tokens = folder.parent / "tokens"
        tokens.write_text(TOKENS)
        options = ServeOptions(
            folder,
            port=nodes.port,
            insecure=True,
            tokens=tokens,
            session=SessionOptions(threads=1),
            batch=BatchOptions(learn_s=0),
            drain_s=2,
        )
        assert deploy(options, RayOptions(min_replicas=2, max_replicas=2, streams=1, everywhere=False)) == ["tiny"]
        yield nodes
    finally:
        serve.shutdown()
        ray.shutdown()
        nodes.cluster.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def options_with(token: str = "open") -> DeviceOptions:
    from narrows.runtime.credentials import LinkSecurity
    from narrows.runtime.link import LinkOptions

    return DeviceOptions(timeout_s=60, stall_s=20, link=LinkOptions(security=LinkSecurity(token=token)))


@needs_ray
def test_a_device_streams_to_a_cluster_as_to_a_process(nodes: Nodes, bundle: Bundle) -> None:
    frames = Frames(bundle)
    with Device(bundle, nodes.address, options_with()) as device:
        outcomes = list(device.stream(pictures(50), quality=1))
    assert [outcome.id for outcome in outcomes if outcome.error is None] == list(range(50))
    for picture, outcome in zip(pictures(50), outcomes, strict=True):
        want = frames.expected(frames.make(0, picture))
        np.testing.assert_allclose(outcome.outputs["logits"], want, rtol=1e-5, atol=1e-5)


@needs_ray
def test_heads_are_fetched_and_errors_keep_their_codes(nodes: Nodes, bundle: Bundle, tmp_path: Path) -> None:
    from narrows.device.pull import PullOptions

    link = options_with().link
    assert pull(nodes.address, "tiny", tmp_path / "got", PullOptions(link=link)).digest == bundle.digest
    opened = (("authorization", "Bearer open"), ("application", "tiny"))
    with grpc.insecure_channel(nodes.address) as channel:
        stub = split_pb2_grpc.SplitInferenceStub(channel)
        frame = frame_to_wire(Frames(bundle).make(1, pictures(1)[0]))
        frame.checksum ^= 1
        request = pb.InferRequest(model="tiny", bundle=bundle.digest, frame=frame)
        for metadata, code in ((opened, "checksum"), (opened[1:], "unauthenticated")):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Infer(request, metadata=metadata)
            assert code_of(caught.value) == code
        greeting = pb.ClientMessage(hello=hello(bundle, bundle="0" * 64))
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Stream(iter([greeting]), metadata=opened))
        assert code_of(caught.value) == BundleMismatchError.code
    with Device(bundle, nodes.address, options_with("sesame")) as device:
        error = device.infer(pictures(1)[0]).error
    assert error is not None
    assert error.code == "permission-denied"


@needs_ray
def test_an_unmodified_triton_client_is_answered_too(nodes: Nodes, bundle: Bundle) -> None:
    triton = pytest.importorskip("tritonclient.grpc", reason="needs pip install 'tritonclient[grpc]'")
    headers = {"authorization": "Bearer open", "application": "tiny"}
    made = Frames(bundle).make(0, pictures(1)[0])
    element = pb.InferRequest(bundle=bundle.digest, frame=frame_to_wire(made)).SerializeToString()
    tensor = triton.InferInput("FRAME", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[element]], object))
    with triton.InferenceServerClient(nodes.address) as client:
        assert client.is_model_ready("tiny.split", headers=headers)
        result = client.infer("tiny.split", [tensor], headers=headers)
    np.testing.assert_allclose(result.as_numpy("logits")[0], Frames(bundle).expected(made), rtol=1e-5, atol=1e-5)


@needs_ray
def test_a_node_that_dies_under_load_costs_no_frame(nodes: Nodes, bundle: Bundle) -> None:
    """Last, for it leaves the cluster with a node less. Streams of both replicas, every frame's outcome once."""
    count, halfway = 400, threading.Barrier(4)
    ended: list[list[Outcome]] = [[] for _ in range(3)]

    def source() -> Iterator[np.ndarray]:
        for number, picture in enumerate(pictures(count)):
            if number == count // 4:
                halfway.wait(60)
            time.sleep(0.002)
            yield picture

    def stream_all(number: int) -> None:
        with Device(bundle, nodes.address, options_with()) as device:
            ended[number] += device.stream(source(), quality=1)

    threads = [threading.Thread(target=stream_all, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    halfway.wait(60)
    nodes.cluster.remove_node(nodes.workers.pop(), allow_graceful=False)
    for thread in threads:
        thread.join(120)
    frames = Frames(bundle)
    expected = [frames.expected(frames.make(0, picture)) for picture in pictures(count)]
    for outcomes in ended:
        assert [outcome.id for outcome in outcomes] == list(range(count))
        assert {outcome.outcome for outcome in outcomes} == {"ok"}
        for outcome, want in zip(outcomes, expected, strict=True):
            np.testing.assert_allclose(outcome.outputs["logits"], want, rtol=1e-5, atol=1e-5)
    assert max(outcome.attempts for outcomes in ended for outcome in outcomes) > 1  # the node's own were sent again


def test_what_rays_proxy_cannot_do_is_refused(folder: Path) -> None:
    for changes in ({}, {"insecure": True, "metrics_port": 0}, {"insecure": True, "allow_load": True}):
        with pytest.raises(UsageError):
            check(ServeOptions(folder, **changes))
    check(ServeOptions(folder, insecure=True))
    with pytest.raises(UsageError):
        RayOptions(min_replicas=3, max_replicas=2)


def test_versions_of_a_model_are_one_deployment(folder: Path, tmp_path: Path) -> None:
    for name, model in (("a/v1", "one"), ("a/v2", "one"), ("b", "two")):
        make_bundle(tmp_path / name, model, seed=len(name))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{}")
    found = models_in(tmp_path)
    assert {name: [path.name for path in paths] for name, paths in found.items()} == {"one": ["v1", "v2"], "two": ["b"]}
    with pytest.raises(NarrowsError):
        models_in(tmp_path / "broken")
