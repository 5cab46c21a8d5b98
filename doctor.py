"""What this installation can do, found by trying: `narrows doctor`."""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.util
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .device.providers import best, present, short_name, try_all
from .runtime.bundle import Bundle, cache_folder
from .runtime.codec import SymbolSpec, by_label, kernel_status, labels
from .runtime.codec.context import has_kernel
from .runtime.errors import NarrowsError
from .runtime.manifest import Half
from .runtime.session import CPU, SessionOptions, open_session, runtime

# y = x + x over float32 [2]: 65 bytes that show whether ONNX Runtime runs at all.
_GRAPH = base64.b64decode("CAcSADo1Cg4KAXgKAXgSAXkiA0FkZBIBZ1oPCgF4EgoKCAgBEgQKAggCYg8KAXkSCgoICAESBAoCCAJCBAoAEA0=")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried."""

    what: str
    ok: bool | None
    """None for a plain fact, and for what is optional and absent."""
    found: str
    advice: str = ""
    """What to do where it is not ok."""


def examine() -> Iterator[Finding]:
    """Try everything, one after the other."""
    yield Finding("python", None, f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores")
    yield Finding(
        "narrows", None, importlib.metadata.version("narrows") if _installed("narrows") else "from a checkout"
    )
    yield _try("onnx runtime", _run_a_graph, "install onnxruntime, or the wheel that fits your board")
    yield from _providers()
    yield Finding("context coder", True if has_kernel() else None, kernel_status())
    for label in labels():
        yield _try(f"coder {label}", lambda label=label: _round_trip(label), "reinstall narrows")  # type: ignore[misc]
    yield _try("grpc", lambda: importlib.import_module("grpc").__version__, "pip install grpcio")
    yield _try("cache", _write_to_cache, "set NARROWS_CACHE to a folder that can be written to")
    yield _extra("pictures", "PIL", "pip install pillow")
    yield _extra("video and cameras", "cv2", "pip install 'narrows[video]'")
    yield _extra("server", "grpc_health", "pip install 'narrows[server]'")
    yield _extra("partitioner: torch", "torch", "pip install 'narrows[partition]'")
    yield _extra("partitioner: onnx", "onnx", "pip install 'narrows[partition]'")


def examine_bundle(path: Path, threads: int = 0) -> Iterator[Finding]:
    """Try a bundle's head on every execution provider: does it reproduce the golden vectors, how quick is it, and which
    of its nodes run elsewhere?

    Raises:
        BundleError: it is none.
    """
    bundle = Bundle.open(path, Half.DEVICE)
    for cut in bundle.manifest.cuts:
        found = try_all(bundle, cut, SessionOptions(threads=threads))
        for trial in found:
            what = f"head {cut.name} on {short_name(trial.provider)}"
            if trial.ms is None:
                yield Finding(what, None, "cannot be used", trial.trouble)
                continue
            where = ", ".join(f"{count} on {short_name(one)}" for one, count in trial.nodes.items())
            nodes = f"mixed: nodes {where}" if trial.mixed else f"all {sum(trial.nodes.values())} nodes"
            taken = "; the quickest" if len(found) > 1 and trial.provider == best(found) else ""
            yield Finding(what, True, f"{trial.ms:.2f} ms, {nodes}{taken}")


def _providers() -> Iterator[Finding]:
    """Every execution provider that this ONNX Runtime lists: can it be loaded?"""
    try:
        listed = [provider for provider in present() if provider != CPU]
    except NarrowsError:
        return  # said already
    for provider in listed:
        what = f"provider {short_name(provider)}"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "probe.onnx"
            path.write_bytes(_GRAPH)
            try:
                loaded = open_session(path, SessionOptions((provider, CPU), quiet=True)).get_providers()
            except NarrowsError as error:
                yield Finding(what, None, "cannot be used", str(error))
                continue
        if provider in loaded:
            yield Finding(what, True, "can be loaded")
        else:
            yield Finding(
                what, None, "is listed and cannot be loaded", "install its libraries, or never mind: the CPU runs"
            )


def _try(what: str, attempt: Callable[[], str], advice: str) -> Finding:
    try:
        return Finding(what, True, attempt())
    except (NarrowsError, ImportError, OSError, AssertionError) as error:
        return Finding(what, False, str(error), advice)


def _extra(what: str, module: str, install: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(what, None, "not installed", install)
    return Finding(what, True, "installed")


def _run_a_graph() -> str:
    ort = runtime()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        path.write_bytes(_GRAPH)
        (y,) = open_session(path, SessionOptions()).run(None, {"x": np.array([1, 2], np.float32)})
    assert y.tolist() == [2, 4], "ONNX Runtime cannot add"
    return f"{ort.__version__}, {', '.join(ort.get_available_providers())}"


def _round_trip(label: str) -> str:
    symbols = np.random.default_rng(0).binomial(15, 0.2, (16, 8, 8)).astype(np.uint8)
    bound = by_label(label).bind(SymbolSpec(symbols.shape, symbols.dtype, levels=16, channel_axis=0))
    payload = bound.encode(symbols)
    assert np.array_equal(bound.decode(payload), symbols), "what was decoded is not what was coded"
    return f"{symbols.size} symbols in {len(payload)} bytes and back"


def _write_to_cache() -> str:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return str(folder)


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
