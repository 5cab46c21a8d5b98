"""A real Triton server that runs the same tail, in its Python backend: on the same frames, and on plain symbols.

    python benchmarks/triton_peer.py VENV [--json]

starts it and lets a device use it as any stock server: `narrows run --protocol oip`.

The binary comes with `pip install nvidia-pytriton`, in a virtual environment of its own that also has onnxruntime,
numpy, protobuf, zstandard and msgspec; its Python has to be the minor version of the backend's stub.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import harness
import numpy as np
from narrows.device import Device, DeviceOptions, OpenInference
from narrows.protos import oip_pb2
from narrows.runtime.bundle import Bundle
from narrows.runtime.halves import Head, Tail
from narrows.runtime.images import fit, load_image
from narrows.runtime.oip import datatype_of
from narrows.runtime.session import SessionOptions

PACKAGE = Path(__file__).resolve().parent.parent

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


# The tail as one would hand it to Triton's ONNX backend, which this wheel lacks: its own inputs and outputs.
_TAIL_CONFIG = """
name: "net.tail"
backend: "python"
max_batch_size: 32
input [
  {{ name: "{symbols}" data_type: TYPE_{datatype} dims: [ {shape} ] }},
  {{ name: "{quality}" data_type: TYPE_INT32 dims: [ 1 ] }}
]
output [ {{ name: "{output}" data_type: TYPE_FP32 dims: [ {classes} ] }} ]
dynamic_batching {{ max_queue_delay_microseconds: 1000 }}
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""

_TAIL_MODEL = """
import numpy as np
import onnxruntime
import triton_python_backend_utils as utils

class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = {threads}
        self.session = onnxruntime.InferenceSession({graph!r}, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        names = ({symbols!r}, {quality!r})
        columns = [[utils.get_input_tensor_by_name(r, name).as_numpy() for r in requests] for name in names]
        symbols, quality = map(np.concatenate, columns)
        logits = self.session.run([{output!r}], {{{symbols!r}: symbols, {quality!r}: quality.reshape(-1)}})[0]
        parts = np.split(logits, np.cumsum([len(column) for column in columns[0]])[:-1])
        return [utils.InferenceResponse([utils.Tensor({output!r}, np.ascontiguousarray(part))]) for part in parts]
"""


@contextmanager
def triton_server(venv: Path, bundle: Bundle, folder: Path, threads: int) -> Iterator[tuple[str, int]]:
    """Triton on free ports: gRPC address and process id of its Python backend's parent."""
    site = next((venv / "lib").glob("python3.*")) / "site-packages"
    home = site / "pytriton" / "tritonserver"
    stub = home / "python_backend_stubs" / site.parent.name.removeprefix("python") / "triton_python_backend_stub"
    shutil.copy(stub, home / "backends" / "python")
    repository = folder / "repository"
    _write_models(repository, bundle, threads)
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
        repository,
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


def _write_models(repository: Path, bundle: Bundle, threads: int) -> None:
    output, cut = bundle.manifest.outputs[0].tensor, bundle.manifest.cuts[0]
    symbols = cut.crossing[0].symbols
    fields = {
        "parent": str(_parent_of_package(repository.parent)),
        "root": str(bundle.root),
        "graph": str(bundle.file(cut.tail)),
        "threads": threads,
        "output": output.name,
        "classes": ", ".join(map(str, output.shape)),
        "symbols": symbols.name,
        "datatype": datatype_of(symbols.dtype),
        "shape": ", ".join(map(str, symbols.shape)),
        "quality": cut.quality_input,
    }
    for name, config, model in (("net", _CONFIG, _MODEL), ("net.tail", _TAIL_CONFIG, _TAIL_MODEL)):
        folder = repository / name / "1"
        folder.mkdir(parents=True)
        (folder.parent / "config.pbtxt").write_text(config.format(**fields))
        (folder / "model.py").write_text(model.format(**fields))


def _parent_of_package(folder: Path) -> Path:
    """A folder in which the package has its own name, whatever the checkout is called."""
    made = folder / "python"
    made.mkdir()
    (made / "narrows").symlink_to(PACKAGE)
    return made


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    with grpc.insecure_channel(address) as channel:
        ready = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelReady",
            oip_pb2.ModelReadyRequest.SerializeToString,
            oip_pb2.ModelReadyResponse.FromString,
        )
        for _ in range(240):
            try:
                if all(ready(oip_pb2.ModelReadyRequest(name=n), timeout=1).ready for n in ("net", "net.tail")):
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


def device_on_triton(venv: Path, frames: int) -> dict[str, Any]:
    """A device whose tail Triton holds; its answers beside those of head and tail here."""
    subject = next(subject for subject in harness.SUBJECTS if subject.name == "resnet20-cifar10")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = subject.cut(folder)
        preprocess, cut = bundle.manifest.preprocess, bundle.manifest.cuts[0]
        assert preprocess is not None
        pictures = [fit(load_image(path), preprocess) for path in subject.write_pictures(folder / "pictures", frames)]
        head, tail = Head(bundle, cut, SessionOptions(threads=1)), Tail(bundle, cut, SessionOptions(threads=1))
        best = len(cut.qualities) - 1
        expected = [tail.run([head.run([picture], best).symbols], [best])[0] for picture in pictures]
        options = DeviceOptions(open_inference=OpenInference("net.tail"))
        with triton_server(venv, bundle, folder, 1) as (address, _), Device(bundle, address, options) as device:
            start = time.perf_counter()
            outcomes = list(device.stream(pictures))
            seconds = time.perf_counter() - start
    errors = [str(outcome.error) for outcome in outcomes if outcome.error is not None]
    answered = [(o.outputs, want) for o, want in zip(outcomes, expected, strict=True) if o.error is None]
    worst = max(float(np.abs(outputs[name] - want[name]).max()) for outputs, want in answered for name in want)
    return {
        "frames": len(outcomes),
        "answered": len(answered),
        "largest deviation": worst,
        "frames/s": round(len(outcomes) / seconds),
        "bytes on the wire": outcomes[0].wire_bytes,
        "errors": errors[:1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("venv", type=Path, help="virtual environment with nvidia-pytriton")
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    harness.report("A device on Triton", [device_on_triton(options.venv, options.frames)], as_json=options.json)


if __name__ == "__main__":
    main()
