"""Masks for a tail that segments, and what tails are measured by."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from narrows.partitioner.training import DataOptions
from narrows.partitioner.training.heads import segmentation_loss
from narrows.partitioner.training.masks import read_masks
from narrows.partitioner.training.measures import IGNORED, Accuracy, MeanIoU, MeanLoss, Psnr
from narrows.runtime.errors import SourceError, UsageError
from narrows.runtime.manifest import Preprocess

PREPROCESS = Preprocess(6, 8)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 6, 8, 3), np.uint8)


def masks(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 3, (count, 6, 8), np.uint8)


def test_masks_stay_with_their_pictures(tmp_path: Path) -> None:
    x, y = pictures(10), masks(10)
    y[0, 0, 0] = IGNORED
    np.savez(tmp_path / "m.npz", x=x, y=y)
    data = read_masks(tmp_path / "m.npz", PREPROCESS, DataOptions(validation=0.3))
    assert (len(data.train), len(data.validation), data.classes) == (7, 3, ("0", "1", "2"))
    for part in (data.train, data.validation):
        for picture, mask in zip(part.pictures, part.labels, strict=True):
            row = next(i for i, own in enumerate(x) if np.array_equal(own, picture))
            assert np.array_equal(mask, y[row])


def test_a_part_and_names_of_its_own_are_taken(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "m.npz", x=pictures(4)[..., 0], y=masks(4), x_val=pictures(2), y_val=masks(2), classes=list("abcd")
    )
    data = read_masks(tmp_path / "m.npz", PREPROCESS)
    assert (len(data.train), len(data.validation), data.classes) == (4, 2, tuple("abcd"))
    assert data.train.pictures.shape == (4, 6, 8, 3)


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"x": pictures(3)}, "no array y"),
        ({"x": pictures(3)[:, :5], "y": masks(3)[:, :5]}, "6×8; 5×8 came"),
        ({"x": pictures(3), "y": masks(2)}, "for each pixel"),
        ({"x": pictures(3), "y": masks(3).astype(np.float32)}, "for each pixel"),
        ({"x": pictures(3), "y": masks(3).astype(np.int64) - 1}, "classes are 0 to 254"),
        ({"x": pictures(3), "y": masks(3).astype(np.int64) + 300}, "classes are 0 to 254"),
        ({"x": pictures(3), "y": masks(3), "classes": ["a", "b"]}, "has class 2"),
        ({"x": pictures(3), "y": masks(3), "classes": list(map(str, range(256)))}, "tells 255 apart"),
        ({"x": pictures(1), "y": masks(1)}, "cannot be split"),
        ({"x": pictures(3), "y": masks(3), "x_val": pictures(1)}, "without y_val"),
        ({"x": pictures(3).astype(np.float32), "y": masks(3)}, "bytes as a camera"),
    ],
)
def test_what_are_no_masks_is_refused(tmp_path: Path, arrays: dict, why: str) -> None:
    np.savez(tmp_path / "m.npz", **arrays)
    with pytest.raises(UsageError, match=why):
        read_masks(tmp_path / "m.npz", PREPROCESS)


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        read_masks(tmp_path / "m.npz", PREPROCESS)


def test_pixels_without_a_class_teach_and_count_nothing() -> None:
    torch.manual_seed(0)
    answer = torch.randn(2, 3, 4, 4, requires_grad=True)
    target = torch.randint(0, 3, (2, 4, 4))
    target[:, :2] = IGNORED
    segmentation_loss(answer, target).backward()
    assert answer.grad is not None
    assert not answer.grad[:, :, :2].any()
    assert answer.grad[:, :, 2:].any()
    assert segmentation_loss(answer, torch.full((2, 4, 4), IGNORED)).item() == 0
    measure = MeanIoU(3)
    made = target.numpy().astype(np.uint8) % 3
    measure.add(made, target.numpy())
    assert measure.value == 1


def test_measures_are_what_their_names_say() -> None:
    right = Accuracy()
    right.add(np.eye(4), np.array([0, 1, 2, 0]))
    assert right.value == 0.75
    shared = MeanIoU(4)  # class 3 occurs nowhere and counts for nothing
    shared.add(np.array([[[0, 0, 1, 1]]], np.uint8), np.array([[[0, 1, 1, 2]]]))
    assert math.isclose(shared.value, (1 / 2 + 1 / 3 + 0) / 3)
    noise = Psnr()
    noise.add(np.full((2, 3, 4, 4), 0.6, np.float32), np.full((2, 3, 4, 4), 0.5, np.float32))
    assert math.isclose(noise.value, 20, abs_tol=1e-4)
    loss = MeanLoss(torch.nn.functional.mse_loss)
    loss.add(np.ones((1, 2), np.float32), np.zeros((1, 2), np.float32))
    loss.add(np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32))
    assert loss.value == 0.25
