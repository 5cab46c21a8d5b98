"""Teachers and labelled pictures for the benchmarks of training: made from the material once, then kept in a cache.

    python benchmarks/teachers.py [flowers]      # fine-tune the flowers' teacher now, and say how good it is

Beside the flowers' MobileNetV2, which is ImageNet's fine-tuned here, there are CIFAR-10's ResNets as they come.
`teachers:flowers` and `teachers:flowers_data` are what `narrows train` takes as `--teacher` and `--data` when it is
started in this folder.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from harness import material
from narrows.partitioner.training.batches import PHOTOGRAPHS, Batches
from narrows.partitioner.training.data import Part
from onnx import numpy_helper
from PIL import Image
from torch import nn
from torch.nn import functional

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EPS = 1e-5


def cache_folder() -> Path:
    """Where what takes minutes to make is kept: `$XDG_CACHE_HOME/narrows/benchmarks`."""
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "narrows" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# -- data --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pack:
    """Pictures of a pack, as files and as pixels."""

    files: tuple[bytes, ...]
    part: Part


@cache
def pack(name: str, split: str) -> Pack:
    """The `train` or `test` pictures of one of the material's JPEG packs."""
    with np.load(material() / "data" / name) as data:
        blob, offsets = data[f"jpeg_{split}"].tobytes(), data[f"off_{split}"]
        labels = data[f"y_{split}"].astype(np.int64)
    files = tuple(blob[a:b] for a, b in pairwise(offsets))
    return Pack(files, Part(np.stack([decoded(file) for file in files]), labels))


def decoded(file: bytes) -> np.ndarray:
    """`uint8 [height, width, 3]`"""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


FLOWERS, CIFAR = "flowers5_144.npz", "cifar10_jpeg.npz"


class _Named(tuple):
    """Arrays `(x, y)` with the names of their classes."""

    classes: tuple[str, ...]


def _data(name: str) -> tuple[Any, Any]:
    with np.load(material() / "data" / name) as data:
        classes = tuple(str(c) for c in data["classes"])
    pair = []
    for split in ("train", "test"):
        one = _Named((pack(name, split).part.pictures, pack(name, split).part.labels))
        one.classes = classes
        pair.append(one)
    return pair[0], pair[1]


def flowers_data() -> tuple[Any, Any]:
    """Flowers, for `--data teachers:flowers_data`: 3,245 pictures to train on, 809 to try."""
    return _data(FLOWERS)


def cifar_data() -> tuple[Any, Any]:
    """CIFAR-10, JPEG-recompressed, for `--data teachers:cifar_data`."""
    return _data(CIFAR)


def turned(part: Part, *, both: bool) -> Part:
    """Which way up? Pictures as they are (class 0) and upside down (class 1): both of each, or one drawn."""
    upside_down = np.ascontiguousarray(part.pictures[:, ::-1, ::-1])
    if both:
        labels = np.repeat(np.array([0, 1], np.int64), len(part))
        return Part(np.concatenate([part.pictures, upside_down]), labels)
    labels = np.random.default_rng(0).integers(0, 2, len(part))
    return Part(np.where(labels[:, None, None, None] == 1, upside_down, part.pictures), labels)


@cache
def turned_data() -> tuple[Any, Any]:
    """The flowers, half of them upside down, and every test picture both ways."""
    pair = []
    for split in ("train", "test"):
        part = turned(pack(FLOWERS, split).part, both=split == "test")
        one = _Named((part.pictures, part.labels))
        one.classes = ("upright", "upside down")
        pair.append(one)
    return pair[0], pair[1]


# -- the flowers' teacher ----------------------------------------------------------------------------------------------


def flowers(epochs: int = 4) -> tuple[nn.Module, torch.Tensor]:
    """MobileNetV2 with five classes at 144×144, fine-tuned on the flowers; and an example input."""
    return _teacher(f"flowers-mobilenet-v2-{epochs}", 5, lambda: pack(FLOWERS, "train").part, epochs)


def which_way_up(epochs: int = 4) -> tuple[nn.Module, torch.Tensor]:
    """The same network, fine-tuned to tell whether a flower is upside down; and an example input."""
    return _teacher(f"turned-mobilenet-v2-{epochs}", 2, lambda: turned(pack(FLOWERS, "train").part, both=False), epochs)


def _teacher(name: str, classes: int, part: Callable[[], Part], epochs: int) -> tuple[nn.Module, torch.Tensor]:
    path = cache_folder() / f"{name}.pt"
    model = _mobilenet(classes)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        model = _fine_tuned(_from_onnx(classes), part(), epochs)
        torch.save({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return model.eval(), torch.zeros(2, 3, 144, 144)


def declare_torchvision() -> None:
    """Let torchvision's wheel load beside a CPU build of torch, which it does with this help only.

    Raises:
        ImportError: it is not installed.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise ImportError("the flowers' teacher is torchvision's MobileNetV2: pip install --no-deps torchvision")
    tools = str(material() / "tools")
    if torch.version.cuda is None:
        if tools not in sys.path:
            sys.path.append(tools)
        import torchvision_cpu  # noqa: F401


def _mobilenet(classes: int) -> nn.Module:
    declare_torchvision()
    import torchvision

    return torchvision.models.mobilenet_v2(num_classes=classes)


def _from_onnx(classes: int) -> nn.Module:
    """ImageNet's MobileNetV2 with its batch normalisations, which the file has folded away, put back.

    They are given the statistics of the flowers and the scale and offset that undo them, so the function is the file's,
    and training can go on as if they had never been folded.
    """
    proto = onnx.load(material() / "models" / "mobilenet_v2_torchvision_dequant_fp32.onnx")
    weights = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in proto.graph.initializer}
    model = _mobilenet(classes).eval()
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    nodes = [node for node in proto.graph.node if node.op_type == "Conv"]
    with torch.no_grad():
        for convolution, norm, node in zip(convolutions, norms, nodes, strict=True):
            convolution.weight.copy_(weights[node.input[1]])
            norm.bias.copy_(weights[node.input[2]])
            norm.weight.fill_((1 + _EPS) ** 0.5)
            norm.register_forward_pre_hook(_take_statistics)
        chosen = np.random.default_rng(0).choice(len(pack(FLOWERS, "train").part), 256, replace=False)
        model(normalised(pack(FLOWERS, "train").part.pictures[chosen]))
    for norm in norms:
        norm._forward_pre_hooks.clear()
    return model


def _take_statistics(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
    mean = inputs[0].mean((0, 2, 3))
    variance = inputs[0].var((0, 2, 3), unbiased=False).clamp_min(1e-6)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.bias.add_(mean)
    norm.weight.copy_((variance + norm.eps).sqrt())


def _fine_tuned(model: nn.Module, part: Part, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    model = model.to(memory_format=torch.channels_last)
    rate = 5e-4
    groups = [{"params": model.features.parameters()}, {"params": model.classifier.parameters()}]
    batches = Batches(part, 32, PHOTOGRAPHS)
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [rate, 5 * rate], total_steps=epochs * batches.steps, pct_start=0.15
    )
    mean = copy.deepcopy(model)  # of the last hundred steps' weights: two points better than the last weights are
    for epoch in range(epochs):
        model.train()
        began = time.monotonic()
        for pictures, labels in batches.epoch(epoch):
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(normalised(pictures)).float()
            loss = functional.cross_entropy(logits, labels, label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            _follow(mean, model)
        took = time.monotonic() - began
        print(f"epoch {epoch + 1} of {epochs}, {took:.0f} s, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return mean


def _follow(mean: nn.Module, model: nn.Module) -> None:
    with torch.no_grad():
        for slow, fast in zip(mean.state_dict().values(), model.state_dict().values(), strict=True):
            slow.lerp_(fast, 0.01) if slow.is_floating_point() else slow.copy_(fast)


# -- CIFAR-10's teachers -----------------------------------------------------------------------------------------------


class _Shortcut(nn.Module):
    """Every second pixel, and channels of zeros: CIFAR's option A (He et al., 2016, section 4.2)."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more // 2))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = _Shortcut(outputs - inputs) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """CIFAR's residual network of `6 · blocks + 2` layers."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        widths = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        layers = [
            nn.Sequential(
                *(_Block(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1) for i in range(blocks))
            )
            for inputs, outputs, stride in widths
        ]
        self.layer1, self.layer2, self.layer3 = layers
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.linear(self.flatten(self.pool(self.layer3(self.layer2(self.layer1(x))))))


def _cifar(blocks: int) -> tuple[nn.Module, torch.Tensor]:
    model = CifarResNet(blocks)
    path = material() / "models" / f"resnet{6 * blocks + 2}_jpegft.pt"
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval(), torch.zeros(2, 3, 32, 32)


def resnet20() -> tuple[nn.Module, torch.Tensor]:
    """CIFAR-10's ResNet-20; and an example input."""
    return _cifar(3)


def resnet56() -> tuple[nn.Module, torch.Tensor]:
    """CIFAR-10's ResNet-56; and an example input."""
    return _cifar(9)


# -- measuring ---------------------------------------------------------------------------------------------------------


def normalised(pictures: Any) -> torch.Tensor:
    """`uint8 [B, height, width, 3]` as the teachers take it: `float32 [B, 3, height, width]`."""
    x = torch.as_tensor(pictures).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def accuracy(answer: Callable[[torch.Tensor], torch.Tensor], part: Part) -> float:
    """Share of the pictures whose best class is the right one."""
    with torch.no_grad():
        best = [answer(normalised(part.pictures[i : i + 64])).argmax(1).numpy() for i in range(0, len(part), 64)]
    return float(np.mean(np.concatenate(best) == part.labels))


def main() -> None:
    teacher, _ = flowers()
    print(
        f"flowers: {accuracy(teacher, pack(FLOWERS, 'test').part):.4f} of the test pictures; kept in {cache_folder()}"
    )


if __name__ == "__main__":
    main()
