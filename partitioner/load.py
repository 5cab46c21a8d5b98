"""Model in: an ONNX file, a torch module or a library's model becomes a `Model`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ..runtime.errors import UsageError
from .model import Model, from_file
from .torch_source import export, from_library

if TYPE_CHECKING:
    import torch

Source: TypeAlias = "str | Path | Model | torch.nn.Module"
"""What `load` takes."""


def load(source: Source, weights: str | Path | None = None) -> Model:
    """Load a model from wherever it is.

    Args:
        source: path of an ONNX file, `torchvision:NAME`, `timm:NAME`, `hf:PATH` of a local Hugging Face model,
            `package.module:callable` (the callable makes a torch module, or a pair of one and its example inputs), a
            torch module, or a model that is loaded already.
        weights: for a torch model: a file with its state dict (`.pt`, `.pth` or `.safetensors`), or `random`; the
            library's own when None.

    Raises:
        ModelError: it cannot be read, or not be exported.
        MissingDependencyError: a library that is needed is not there.
    """
    if isinstance(source, Model):
        return source
    if not isinstance(source, str | Path):
        return export(source, type(source).__name__)
    path = Path(source)
    if path.exists() or ":" not in str(source) or path.suffix == ".onnx":
        if weights is not None:
            raise UsageError(f"{path}: an ONNX file has its weights in it; --weights is for torch models")
        return from_file(path)
    return from_library(str(source), weights)
