"""A loaded model: one normalised graph that the rest of the room works on, and how it comes out of an ONNX file.

Normalised means: no functions, no initializers among the inputs, a topological order, an opset that the quantiser's
ops have, and weights that stay in their files until somebody copies them.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError

from ..runtime.errors import ModelError, ModelFormatError, OpsetError, first_line
from . import bfloat16
from .check import check

logger = logging.getLogger(__name__)

MIN_OPSET = 8
"""Elementwise ops broadcast from here on, which is all that the quantiser needs."""
_NO_OPSET = 17
MIN_IR, MAX_IR = 8, 10
"""Written files carry an IR version that ONNX Runtime 1.19, the oldest that a device may have, reads."""


@dataclass(frozen=True)
class Model:
    """A loaded model.

    model = load("resnet.onnx")
    model = load("timm:mobilenetv3_small_100", weights="random")
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


def from_file(path: Path, name: str | None = None) -> Model:
    """Read an ONNX file.

    Raises:
        ModelError: no such file; what `check` refuses; an opset that cannot be converted.
    """
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ModelError(f"{path} is a directory; name the ONNX file in it") from None
    except (DecodeError, ValueError, OSError) as error:
        raise ModelFormatError(f"{path} is no ONNX model, or is cut short ({first_line(error)})") from None
    if not proto.graph.node:
        raise ModelFormatError(f"{path} is no ONNX model: there is no graph with nodes in it")
    folder = path.resolve().parent
    check(proto, path.name, folder)
    return Model(name or path.stem, normalise(proto, path.name, folder), folder)


def normalise(proto: onnx.ModelProto, where: str, folder: Path | None = None) -> onnx.ModelProto:
    """Bring a graph into the form that this module promises.

    Raises:
        OpsetError: an opset that cannot be converted.
    """
    if not any(entry.domain in ("", "ai.onnx") for entry in proto.opset_import):
        proto.opset_import.add(domain="", version=_NO_OPSET)  # only ops of other domains so far; ours are standard
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    if bfloat16.upcast(proto, folder):
        logger.warning("%s: bfloat16 is taken as float32, since ONNX Runtime's CPU has no kernels for it", where)
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
    if opset < MIN_OPSET:
        try:
            proto = onnx.version_converter.convert_version(proto, 13)
        except (RuntimeError, onnx.shape_inference.InferenceError) as error:
            raise OpsetError(f"{where}: opset {opset} cannot be converted to 13 ({first_line(error)})") from None
    named = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in named]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    proto.ir_version = min(max(proto.ir_version, MIN_IR), MAX_IR)
    return proto


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """The three names that look most like one that is not there."""
    return difflib.get_close_matches(name, list(names), n=3, cutoff=0.0)
