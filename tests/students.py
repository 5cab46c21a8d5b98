"""A small teacher of handwritten digits, and what trains students of it in seconds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from narrows.partitioner import digits
from narrows.partitioner.training import ImageData, Part, Teacher, TrainOptions
from narrows.runtime.manifest import Preprocess
from torch import nn

SIDE = 24
PREPROCESS = Preprocess(SIDE, SIDE, mean=(digits.MEAN,) * 3, std=(digits.STD,) * 3)
QUICK = TrainOptions(
    channels=4,
    stride=4,
    epochs=(2, 2),
    batch=64,
    rates=(8e-3, 4e-3),
    decoder_width=16,
    decoder_blocks=1,
    threads=1,
    activation="relu",
)


class Block(nn.Module):
    """Two convolutions and what goes past them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


class Net(nn.Module):
    """A residual network that narrows twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 2, 1)
        self.early, self.middle = Block(12), nn.Sequential(nn.Conv2d(12, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU(), Block(24))
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.late(self.middle(self.early(torch.relu(self.stem(x)))))
        return self.head(x.mean((2, 3)))


@cache
def data() -> ImageData:
    """Digits, half as large as the demo's; 450 held out."""
    full = digits.load_digits()
    train, test = (np.ascontiguousarray(x[:, ::2, ::2]) for x in (full.train_x, full.test_x))
    return ImageData("digits", tuple("0123456789"), Part(train, full.train_y), Part(test, full.test_y))


@cache
def _weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net, part = Net(), data().train
    teacher = Teacher("net", net, PREPROCESS)
    optimiser = torch.optim.AdamW(net.parameters())
    epochs, steps = 6, -(-len(part) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=epochs * steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(part)).split(64):
            loss = nn.functional.cross_entropy(
                net(teacher.normalised(part.pictures[rows.numpy()])), torch.from_numpy(part.labels[rows.numpy()])
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.state_dict()


def some(train: int, validation: int) -> ImageData:
    """The first of the digits."""
    full = data()
    parts = ((full.train, train), (full.validation, validation))
    return ImageData("some digits", full.classes, *(Part(p.pictures[:n], p.labels[:n]) for p, n in parts))


def teacher(*, trained: bool = True) -> Teacher:
    """About 97 % right where it is trained; a new one each time, so that no test changes another's."""
    torch.manual_seed(0)
    net = Net()
    if trained:
        net.load_state_dict(_weights())
    return Teacher.load((net.eval(), torch.zeros(2, 3, SIDE, SIDE)), preprocess=PREPROCESS)


def save_teacher(path: Path) -> Path:
    """The teacher's state dict as a file."""
    torch.save(_weights(), path)
    return path


def module() -> tuple[nn.Module, torch.Tensor]:
    """What `--teacher students:module` takes: the untrained network and an example."""
    return Net(), torch.zeros(2, 3, SIDE, SIDE)


def arrays() -> tuple:
    """What `--data students:arrays` takes: digits, and those held out."""
    parts = data()
    return tuple((part.pictures, part.labels) for part in (parts.train, parts.validation))
