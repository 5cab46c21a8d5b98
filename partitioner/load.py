"""Model in: an ONNX file or a torch module becomes one normalised graph that the rest of the room works on.

Normalised means: no functions, no initializers among the inputs, a topological order, an opset that the quantiser's
ops have, and weights that stay in their files until somebody copies them.
"""

from __future__ import annotations

import importlib
import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError

from ..runtime.errors import MissingDependencyError, ModelError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

MIN_OPSET = 8
"""Elementwise ops broadcast from here on, which is all that the quantiser needs."""
MIN_IR, MAX_IR = 8, 10
"""Written files carry an IR version that ONNX Runtime 1.19, the oldest that a device may have, reads."""


@dataclass(frozen=True)
class Model:
    """A loaded model.

    model = load("resnet.onnx")
    model = load("package.module:build")
    """

    name: str
    """Taken from the file or the callable; what a bundle is called when nobody says otherwise."""
    proto: onnx.ModelProto
    """Normalised as this module's docstring says. External data is not in memory."""
    folder: Path | None = None
    """Where external data lies."""
    _keep: Any = field(default=None, repr=False, compare=False)
    """Keeps a temporary folder alive for as long as the model is."""

    def with_proto(self, proto: onnx.ModelProto) -> Model:
        """The same model with another graph."""
        return Model(self.name, proto, self.folder, self._keep)


def load(source: str | Path | Model | torch.nn.Module) -> Model:
    """Load a model from wherever it is.

    Args:
        source: path of an ONNX file, `package.module:callable` (the callable makes a torch module, or a pair of one
            and its example inputs), a torch module, or a model that is loaded already.

    Raises:
        ModelError: it cannot be read, or not be exported.
        MissingDependencyError: torch is needed and not there.
    """
    if isinstance(source, Model):
        return source
    if not isinstance(source, str | Path):
        return from_torch(source, type(source).__name__)
    path = Path(source)
    if path.exists() or ":" not in str(source) or path.suffix == ".onnx":
        return from_file(path)
    module, _, attribute = str(source).partition(":")
    return from_torch(_build(module, attribute), attribute)


def from_file(path: Path, name: str | None = None) -> Model:
    """Read an ONNX file.

    Raises:
        ModelError: no such file, not ONNX, or a graph that cannot be.
    """
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ModelError(f"{path} is a directory; name the ONNX file in it") from None
    except (DecodeError, ValueError, OSError) as error:
        raise ModelError(f"{path} is no ONNX model, or is cut short ({_first_line(error)})") from None
    if not proto.graph.node:
        raise ModelError(f"{path} is no ONNX model: there is no graph with nodes in it")
    return Model(name or path.stem, normalise(proto, str(path)), path.resolve().parent)


def normalise(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """Bring a graph into the form that this module promises.

    Raises:
        ModelError: an opset that cannot be converted.
    """
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
    if opset < MIN_OPSET:
        try:
            proto = onnx.version_converter.convert_version(proto, 13)
        except (RuntimeError, onnx.shape_inference.InferenceError) as error:
            raise ModelError(f"{where}: opset {opset} cannot be converted to 13 ({_first_line(error)})") from None
    named = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in named]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    proto.ir_version = min(max(proto.ir_version, MIN_IR), MAX_IR)
    return proto


def from_torch(module: Any, name: str, example: tuple[Any, ...] | None = None) -> Model:
    """Export a torch module with a dynamic batch.

    Args:
        module: a `torch.nn.Module`, or a pair of one and its example inputs (each with a batch axis first).
        name: the model's name.
        example: inputs; for a module that takes one picture, `float32 [2, 3, 224, 224]` when none are given.

    Raises:
        ModelError: it is no module, or neither exporter takes it.
    """
    torch = _torch()
    if isinstance(module, tuple) and len(module) == 2:
        module, example = module
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"{name}: a torch.nn.Module was expected, {type(module).__name__} came")
    if example is None:
        example = (torch.zeros(2, 3, 224, 224),)
    elif not isinstance(example, tuple):
        example = (example,)
    folder = tempfile.TemporaryDirectory(prefix="narrows.")
    path = Path(folder.name) / "model.onnx"
    module.eval()
    _export(torch, module, example, path, name)
    loaded = from_file(path, name)
    return Model(loaded.name, loaded.proto, loaded.folder, folder)


def _export(torch: Any, module: Any, example: tuple[Any, ...], path: Path, name: str) -> None:
    """Write the module as ONNX: the exporter of torch.export first, the older one where that fails."""
    batch = torch.export.Dim("batch")
    attempts: list[Callable[[], object]] = [
        lambda: torch.onnx.export(
            module,
            example,
            path,
            dynamic_shapes=tuple({0: batch} if tensor.ndim else None for tensor in example),
            dynamo=True,
            external_data=True,
            verbose=False,
        ),
        lambda: torch.onnx.export(
            module,
            example,
            path,
            input_names=[f"input_{i}" for i in range(len(example))],
            dynamic_axes={f"input_{i}": {0: "batch"} for i in range(len(example))},
            dynamo=False,
        ),
    ]
    reasons = []
    for attempt in attempts:
        try:
            with torch.no_grad():
                attempt()
        # The exporters promise no class of their own for what they cannot do.
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError, ValueError, AssertionError) as error:
            reasons.append(_first_line(error))
            logger.warning("%s: an exporter of torch refuses it (%s)", name, reasons[-1])
        else:
            return
    raise ModelError(f"{name}: torch exports it neither with torch.export nor by tracing ({'; '.join(reasons)})")


def _build(module: str, attribute: str) -> Any:
    """Import `module` and call `attribute` of it. The working folder is searched, as `python -m` does."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ModelError(f"{module}:{attribute} cannot be imported ({error}), and is no file either") from None
    except AttributeError:
        raise ModelError(f"{module} has no {attribute!r}") from None
    return found if hasattr(found, "state_dict") or not callable(found) else found()


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(f"torch modules need torch ({error}): pip install 'narrows[partition]'") from None
    return torch


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
