"""A real Triton server that runs the same tail on the same frames, in its Python backend.

The binary comes with `pip install nvidia-pytriton`, in a virtual environment of its own that also has onnxruntime,
numpy, protobuf, zstandard and msgspec; its Python has to be the minor version of the backend's stub.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from narrows.protos import oip_pb2
from narrows.runtime.bundle import Bundle

PACKAGE_PARENT = Path(__file__).resolve().parent.parent.parent

_CONFIG = """
name: "net"
backend: "python"
max_batch_size: 32
input [ {{ name: "FRAME" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [ {{ name: "{output}" data_type: TYPE_FP32 dims: [ {classes} ] }} ]
dynamic_batching {{ max_queue_delay_microseconds: 1000 }}
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""

_MODEL = """
import sys
sys.path.insert(0, {parent!r})
import numpy as np
import triton_python_backend_utils as utils
from narrows.protos import split_pb2
from narrows.runtime.bundle import Bundle
from narrows.runtime.frame import FrameCodec
from narrows.runtime.halves import Tail
from narrows.runtime.session import SessionOptions
from narrows.runtime.wire import frame_from_wire

class TritonPythonModel:
    def initialize(self, args):
        bundle = Bundle.open({root!r})
        self.codec = FrameCodec(bundle, 0)
        self.tail = Tail(bundle, bundle.manifest.cuts[0], SessionOptions(threads={threads}))

    def execute(self, requests):
        columns = [utils.get_input_tensor_by_name(r, "FRAME").as_numpy().reshape(-1) for r in requests]
        messages = [split_pb2.InferRequest.FromString(element) for column in columns for element in column]
        frames = [frame_from_wire(message.frame) for message in messages]
        symbols = [self.codec.unpack(frame) for frame in frames]
        outputs = self.tail.run(symbols, [frame.quality for frame in frames])
        logits = np.stack([output[{output!r}] for output in outputs])
        answers, start = [], 0
        for column in columns:
            part = np.ascontiguousarray(logits[start : start + len(column)])
            answers.append(utils.InferenceResponse([utils.Tensor({output!r}, part)]))
            start += len(column)
        return answers
"""


@contextmanager
def triton_server(venv: Path, bundle: Bundle, folder: Path, threads: int) -> Iterator[tuple[str, int]]:
    """Triton on free ports: gRPC address and process id of its Python backend's parent."""
    site = next((venv / "lib").glob("python3.*")) / "site-packages"
    home = site / "pytriton" / "tritonserver"
    stub = home / "python_backend_stubs" / site.parent.name.removeprefix("python") / "triton_python_backend_stub"
    shutil.copy(stub, home / "backends" / "python")
    output = bundle.manifest.outputs[0].tensor
    model = folder / "repository" / "net"
    (model / "1").mkdir(parents=True)
    classes = ", ".join(str(d) for d in output.shape)
    (model / "config.pbtxt").write_text(_CONFIG.format(output=output.name, classes=classes))
    fields = {"parent": str(PACKAGE_PARENT), "root": str(bundle.root), "threads": threads, "output": output.name}
    (model / "1" / "model.py").write_text(_MODEL.format(**fields))
    ports = [_free_port() for _ in range(3)]
    library = subprocess.check_output(
        [venv / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"], text=True
    ).strip()
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{site / 'nvidia_pytriton.libs'}:{library}",
        "PYTHONPATH": str(site),
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
    }
    command = [
        home / "bin" / "tritonserver",
        "--model-repository",
        model.parent,
        "--backend-directory",
        home / "backends",
    ]
    named = list(zip(("grpc", "http", "metrics"), ports, strict=True))
    flags = [flag for name, port in named for flag in (f"--{name}-port={port}", f"--{name}-address=127.0.0.1")]
    log = (folder / "triton.log").open("wb")
    process = subprocess.Popen([*map(str, command), *flags], env=environment, stdout=log, stderr=log)
    address = f"127.0.0.1:{ports[0]}"
    try:
        _wait(address, process, folder / "triton.log")
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(60)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    with grpc.insecure_channel(address) as channel:
        ready = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelReady",
            oip_pb2.ModelReadyRequest.SerializeToString,
            oip_pb2.ModelReadyResponse.FromString,
        )
        for _ in range(240):
            try:
                if ready(oip_pb2.ModelReadyRequest(name="net"), timeout=1).ready:
                    return
            except grpc.RpcError:
                pass  # not listening yet
            if process.poll() is not None:
                break
            time.sleep(0.25)
    raise SystemExit(f"Triton did not come up:\n{log.read_text()[-3000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
