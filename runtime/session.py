"""The one place that makes ONNX Runtime sessions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from .bundle import cache_folder, sha256_of
from .cores import available_cores
from .errors import BundleError, MissingDependencyError, UsageError, first_line

if TYPE_CHECKING:
    import onnxruntime as ort

CPU = "CPUExecutionProvider"
_XNNPACK = "XnnpackExecutionProvider"
OPTIMISED = "optimised.onnx"
_OPTIMISATION = ("disabled", "basic", "extended", "all")


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a graph is run."""

    providers: tuple[str, ...] = (CPU,)
    """Execution providers in order of preference; one that this installation lacks is an error, not a surprise."""
    threads: int = 0
    """Threads inside one operator; 0 for one to a core that this process may use."""
    optimisation: str = "all"
    """Graph optimisation: `disabled`, `basic`, `extended` or `all`."""
    quiet: bool = False
    """Keep ONNX Runtime's own error log off the terminal, where a refusal is expected and handled."""
    trace: Path | None = None
    """Folder for ONNX Runtime's profile of every node (`end_profiling` writes it) and for `optimised.onnx`, the graph
    that the profile speaks of, where the CPU alone runs it."""

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise UsageError(f"threads must be 0 or more, not {self.threads}")
        if self.optimisation not in _OPTIMISATION:
            raise UsageError(f"optimisation must be one of {', '.join(_OPTIMISATION)}, not {self.optimisation!r}")


def runtime() -> ModuleType:
    """ONNX Runtime, found by import: its distribution may be `onnxruntime`, `onnxruntime-gpu` or a board's own wheel.

    Raises:
        MissingDependencyError: there is none.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"ONNX Runtime cannot be imported ({error}); install onnxruntime, or the wheel that fits your board"
        ) from None
    module: ModuleType = onnxruntime
    return module


def open_session(
    path: Path | bytes, options: SessionOptions | None = None, folder: Path | None = None
) -> ort.InferenceSession:
    """Load a graph.

    Args:
        path: an ONNX file whose bytes have been vouched for, with external data beside it; or those bytes.
        options: how to run it.
        folder: where external data lies, for bytes.

    Raises:
        BundleError: ONNX Runtime refuses the graph.
        UsageError: an execution provider that is not there.
    """
    options = options or SessionOptions()
    ort = runtime()
    missing = set(options.providers) - set(ort.get_available_providers())
    if missing:
        raise UsageError(
            f"no execution provider {', '.join(sorted(missing))} in this ONNX Runtime; "
            f"it has {', '.join(ort.get_available_providers())}"
        )
    settings = ort.SessionOptions()
    # XNNPACK has threads of its own, and two sets of them would fight for the cores.
    settings.intra_op_num_threads = 1 if options.providers[0] == _XNNPACK else options.threads or _threads()
    # One frame is one path through the graph: parallel branches would cost more in hand-overs than they gain.
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # A spinning worker burns the core that the coder, the link or another model is waiting for.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
    settings.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    )[_OPTIMISATION.index(options.optimisation)]
    # Errors alone: the optimiser's warnings are no business of who runs a bundle.
    settings.log_severity_level = 4 if options.quiet else 3
    if options.trace is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(options.trace / "nodes")
        if options.providers == (CPU,):  # a graph that a provider has compiled cannot be written
            settings.optimized_model_filepath = str(options.trace / OPTIMISED)
    if folder is not None:
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    source = path if isinstance(path, bytes) else str(path)
    providers = [(provider, _provider_options(provider, path, options)) for provider in options.providers]
    try:
        return ort.InferenceSession(source, settings, providers=providers)
    except graph_errors() as error:
        name = "the graph" if isinstance(path, bytes) else path.name
        raise BundleError(f"ONNX Runtime {ort.__version__} refuses {name}: {first_line(error)}") from None


def _provider_options(provider: str, graph: Path | bytes, options: SessionOptions) -> dict[str, str]:
    """What a provider is told: above all where to keep what it compiles, for the next start."""
    if provider == _XNNPACK:
        return {"intra_op_num_threads": str(options.threads or available_cores())}
    kind = _ENGINE_CACHES.get(provider)
    if kind is None or isinstance(graph, bytes):
        return {}
    # By the graph's digest: a provider's own names say nothing of the weights.
    folder = cache_folder() / "engines" / provider / sha256_of(graph)
    folder.mkdir(parents=True, exist_ok=True)
    return {name: value.format(folder=folder) for name, value in kind.items()}


_ENGINE_CACHES = {
    "TensorrtExecutionProvider": {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "{folder}",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "{folder}",
    },
    "NvTensorRTRTXExecutionProvider": {"nv_runtime_cache_path": "{folder}"},
    "OpenVINOExecutionProvider": {"cache_dir": "{folder}"},
}


def _threads() -> int:
    """0, which is ONNX Runtime's own choice (the machine's cores), unless this process may use fewer."""
    cores = available_cores()
    return cores if cores < (os.cpu_count() or 1) else 0


def graph_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for a graph or an input that it refuses; its classes have no common root."""
    state = runtime().capi.onnxruntime_pybind11_state
    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented", "EPFail")
    return (RuntimeError, state.RuntimeException, *(getattr(state, name) for name in names if hasattr(state, name)))
