"""A small classifier of handwritten digits: real data that comes with scikit-learn, trained in seconds.

It is what the demo cuts. The network is a plain convolutional one that narrows towards its middle, as mobile networks
do; it knows nothing of being cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..runtime.errors import MissingDependencyError
from .quiet import quiet_exporter

SIZE = 48
"""Pixels a side. The scans are 8×8; enlarged, there is something to cut."""
MEAN, STD = 78.0, 96.0
"""Of the enlarged bytes."""


@dataclass(frozen=True)
class Digits:
    """The pictures and their classes."""

    train_x: NDArray[np.uint8]
    """`[1347, SIZE, SIZE, 3]`"""
    train_y: NDArray[np.int64]
    test_x: NDArray[np.uint8]
    """`[450, SIZE, SIZE, 3]`, held out."""
    test_y: NDArray[np.int64]


def load_digits() -> Digits:
    """The scans of the UCI handwritten digits set that scikit-learn carries, enlarged, as grey RGB pictures.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as scans
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise MissingDependencyError("the digits come with scikit-learn: pip install 'narrows[demo]'") from None
    data = scans()
    small = torch.from_numpy(data.images.astype(np.float32) * (255 / 16))[:, None]
    large = nn.functional.interpolate(small, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
    grey = large.round().clamp(0, 255).to(torch.uint8).numpy()[:, 0, :, :, None]
    pictures = np.ascontiguousarray(np.broadcast_to(grey, (*grey.shape[:3], 3)))
    train_x, test_x, train_y, test_y = train_test_split(
        pictures, data.target.astype(np.int64), test_size=450, random_state=0, stratify=data.target
    )
    return Digits(train_x, train_y, test_x, test_y)


def network() -> nn.Module:
    """The classifier, untrained: `float32 [B, 3, SIZE, SIZE]`, normalised, to logits `[B, 10]`."""

    def block(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    return nn.Sequential(
        block(3, 16, stride=2),
        block(16, 24, stride=2),
        block(24, 32, stride=2),
        block(32, 12, kernel=1),
        block(12, 64),
        block(64, 64, stride=2),
        block(64, 96),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


def train(digits: Digits, epochs: int = 12, progress: Callable[[int, int], None] | None = None) -> nn.Module:
    """Train the classifier; the same weights every time on one machine.

    Args:
        digits: the data.
        epochs: passes over the training half.
        progress: called with (passes done, passes in all).

    Returns:
        The network in evaluation mode.
    """
    torch.manual_seed(0)
    model = network()
    x = torch.from_numpy((digits.train_x.astype(np.float32) - MEAN) / STD).permute(0, 3, 1, 2).contiguous()
    y = torch.from_numpy(digits.train_y)
    batch = 64
    steps = -(-len(x) // batch)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-2, total_steps=epochs * steps)
    for epoch in range(epochs):
        for rows in torch.randperm(len(x)).split(batch):  # type: ignore[no-untyped-call]
            # A pixel or two of shift: the only augmentation that leaves every digit what it is.
            shift = tuple(int(s) for s in torch.randint(-3, 4, (2,)))
            loss = nn.functional.cross_entropy(model(x[rows].roll(shift, (2, 3))), y[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        if progress is not None:
            progress(epoch + 1, epochs)
    return model.eval()


def export(model: nn.Module, path: str) -> None:
    """Write the classifier as ONNX: input `image` `float32 [batch, 3, SIZE, SIZE]`, output `logits`."""
    example = torch.zeros(2, 3, SIZE, SIZE)
    with quiet_exporter():
        torch.onnx.export(
            model,
            (example,),
            path,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
