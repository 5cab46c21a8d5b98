"""The teacher: a torch classifier, or any network on pictures, as it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ...runtime.errors import ModelError, first_line
from ...runtime.manifest import Preprocess
from ..model import Model
from ..preprocess import parse
from ..torch_source import Module, library, module_from

Tensor = torch.Tensor
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Teacher:
    """A network on pictures, frozen.

    teacher = Teacher.load("models:resnet20", weights="resnet20.pt", preprocess="imagenet")
    """

    name: str
    module: nn.Module
    """In evaluation mode; `float32 [B, 3, height, width]` to `float32 [B, classes]`. No parameter learns."""
    preprocess: Preprocess
    """How a picture becomes its input."""

    @classmethod
    def load(
        cls,
        source: str | Path | nn.Module,
        weights: str | Path | None = None,
        preprocess: str | Preprocess | None = "imagenet",
    ) -> Teacher:
        """Load a teacher.

        Args:
            source: what `partitioner.load` takes for torch modules, or an ONNX file, which `onnx2torch` turns into one.
            weights: a state dict; not for an ONNX file.
            preprocess: as `cut_model` takes it. Its size may differ from the one that the network was made for.

        Raises:
            ModelError: it cannot be loaded, or takes no single picture.
            UsageError: preprocessing that cannot be.
            MissingDependencyError: a library that is needed is not there.
        """
        made, name = _load(source, weights)
        module, example = made.module.eval().requires_grad_(False), made.example[0]
        if len(made.example) != 1 or example.ndim != 4 or example.shape[1] != 3:
            shapes = [tuple(e.shape) for e in made.example]
            raise ModelError(f"{name}: a teacher takes one batch of RGB pictures [B, 3, height, width], not {shapes}")
        return cls(name, module, _preprocess(preprocess, tuple(example.shape[2:])))

    @property
    def example(self) -> Tensor:
        """Two pictures of nothing, as the module takes them."""
        return torch.zeros(2, 3, self.preprocess.height, self.preprocess.width)

    @property
    def params(self) -> int:
        """Parameters of the whole network."""
        return params_of(self.module)

    def normalised(self, pixels: Pixels | Tensor) -> Tensor:
        """As the head's graph does it: `uint8 [B, height, width, 3]`, RGB, to `float32 [B, 3, height, width]`."""
        p = self.preprocess
        x = pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.ascontiguousarray(pixels))
        x = x.flip(3) if p.order == "bgr" else x
        factors, offsets = (torch.tensor(values) for values in p.affine)
        x = x.float() * factors + offsets
        return x.permute(0, 3, 1, 2)  # channels last in memory, as convolutions are quickest


def params_of(module: nn.Module) -> int:
    """Parameters of a module, those that do not learn too."""
    return sum(p.numel() for p in module.parameters())


def macs_of(module: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates for one sample of `example`'s batch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(example)
    return int(counter.get_total_flops() // 2 // len(example))


def _load(source: str | Path | nn.Module, weights: str | Path | None) -> tuple[Module, str]:
    if isinstance(source, str | Path):
        if Path(source).suffix == ".onnx":
            return _from_onnx(Path(source)), Path(source).stem
        return module_from(source, weights), str(source).rpartition(":")[2]
    made = module_from(source, weights)
    return made, type(made.module).__name__


def _from_onnx(path: Path) -> Module:
    """An ONNX classifier as a torch module."""
    from ..load import load

    onnx2torch = library("onnx2torch")
    model = load(path)
    inputs = model.proto.graph.input
    dims = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
    if len(dims) != 4:
        raise ModelError(f"{path}: a teacher takes one batch of RGB pictures [B, 3, height, width]")
    import onnx

    try:
        module = onnx2torch.convert(onnx.load(str(path)))
    # The converter raises NotImplementedError, KeyError, ValueError and more for what it does not know.
    except Exception as error:  # noqa: BLE001
        raise ModelError(f"{path}: onnx2torch cannot make a torch module of it ({first_line(error)})") from None
    return Module(module, (torch.zeros(2, dims[1] or 3, dims[2] or 224, dims[3] or 224),))


def _preprocess(text: str | Preprocess | None, size: Sequence[int]) -> Preprocess:
    """What `--preprocess` says, for a network whose pictures may be of any size."""
    if isinstance(text, Preprocess):
        return text
    value = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, None, None])
    model = Model("teacher", helper.make_model(helper.make_graph([], "teacher", [value], [])))
    found = parse(None if text == "none" else text, model) or Preprocess(size[0], size[1])
    if text is None or "size" not in text:
        found = replace(found, height=size[0], width=size[1])
    return found
