"""The students of `rate_accuracy.py`: how each is trained, and the bundle that comes of it.

python benchmarks/students.py NAME [--seed 0]     # train one of RECIPES, or go on with it
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from narrows.partitioner.training import Teacher, TrainOptions
from narrows.partitioner.training.batches import PHOTOGRAPHS, SMALL_PICTURES
from narrows.partitioner.training.data import ImageData, read_data
from narrows.partitioner.training.recipe import run_recipe
from narrows.runtime.manifest import Preprocess
from teachers import MEAN, STD, cache_folder, cifar_data, flowers, flowers_data, resnet20, turned_data, which_way_up


@dataclass(frozen=True)
class Recipe:
    """A student before it is trained."""

    subject: str
    method: str
    """As the table calls it."""
    at: str
    """What the decoder restores."""
    options: TrainOptions


_FLOWERS = TrainOptions(
    inherit=True,
    channels=32,
    stride=16,
    decoder_width=64,
    decoder_blocks=1,
    head_params=27_870,
    head_macs=45_000_000,
    epochs=(1, 8),
    rates=(1e-3, 3e-4),
    taps=(),
    batch=32,
    temperature=2.0,
    distil_weight=0.7,
    augmentation=replace(PHOTOGRAPHS, mix=0.5),
    views=9,
    precision="bfloat16",
)
_CIFAR = TrainOptions(
    inherit=True,
    channels=96,
    stride=8,
    levels=32,
    decoder_width=64,
    decoder_blocks=1,
    head_params=140_000,
    head_macs=33_000_000,
    epochs=(1, 11, 3),
    rates=(1e-3, 5e-4, 5e-4),
    taps=(),
    batch=128,
    temperature=3.0,
    distil_weight=0.8,
    augmentation=SMALL_PICTURES,
    views=3,
    precision="bfloat16",
)
_RUNGS = (120, 240, 480)
"""Bytes of a flower, four times as many at the end as at the beginning."""


_AS_BOTTLEFIT = 680
"""What comes out near BottleFit's bytes."""
_LESS_MIXED = replace(_FLOWERS.augmentation, mix=0.25)
"""For the lower rates: a hundred bytes hold hardly one picture, let alone two."""


def _entropic(target: int) -> TrainOptions:
    augmentation = _FLOWERS.augmentation if target >= _RUNGS[-1] else _LESS_MIXED
    return replace(
        _FLOWERS, method="entropic", levels=32, target_bytes=(target,), epochs=(4, 5), augmentation=augmentation
    )


RECIPES = {
    "flowers-bottlefit": Recipe("flowers", "BottleFit", "features.10", replace(_FLOWERS, method="bottlefit", levels=8)),
    "flowers-ladder": Recipe(
        "flowers",
        "one model, every rate",
        "features.10",
        replace(
            _FLOWERS,
            method="ladder",
            levels=32,
            target_bytes=_RUNGS,
            epochs=(4, 10),
            augmentation=_LESS_MIXED,
        ),
    ),
    **{
        f"flowers-entropic-{target}": Recipe(
            "flowers",
            "Entropic Student",
            "features.10",
            _entropic(target),
        )
        for target in (*_RUNGS, _AS_BOTTLEFIT)
    },
    **{
        f"flowers-bottlefit-{levels}": Recipe(
            "flowers", "BottleFit", "features.10", replace(_FLOWERS, method="bottlefit", levels=levels)
        )
        for levels in (3, 5)
    },
    "turned-entropic-480": Recipe("turned", "Entropic Student", "features.10", _entropic(480)),
    "cifar10-ladder": Recipe(
        "cifar10",
        "one model, every rate",
        "layer3.0",
        replace(_CIFAR, method="ladder", target_bytes=(70, 140, 280)),
    ),
}


@cache
def subject(name: str) -> tuple[Teacher, ImageData]:
    """The teacher and its pictures."""
    make, data = {
        "flowers": (flowers, flowers_data),
        "turned": (which_way_up, turned_data),
        "cifar10": (resnet20, cifar_data),
    }[name]
    module, example = make()
    teacher = Teacher(name, module.requires_grad_(False), _preprocess(example))
    return teacher, read_data(data(), teacher.preprocess)


def _preprocess(example: torch.Tensor) -> Preprocess:
    return Preprocess(example.shape[2], example.shape[3], scale=1 / 255, mean=MEAN, std=STD)


def folder_of(name: str, seed: int) -> Path:
    """Of a student's run: checkpoint, curves, metrics and bundle."""
    return cache_folder() / "students" / f"{name}-{seed}"


def bundle_of(name: str, seed: int) -> Path:
    """Of a student; it is there when the run is done."""
    return folder_of(name, seed) / "bundles" / name


def student(name: str, seed: int) -> Path:
    """Train a student, or go on with it where it was left; its bundle."""
    if not bundle_of(name, seed).exists():
        recipe = RECIPES[name]
        teacher, data = subject(recipe.subject)
        options = replace(recipe.options, seed=seed)
        run_recipe(teacher, data, options, output=folder_of(name, seed), at=recipe.at, name=name, progress=_tell)
    return bundle_of(name, seed)


def _tell(_stage: str, _done: int, _total: int) -> None:
    """Epochs are logged; steps are too many for a log."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("onnx_ir").setLevel(logging.WARNING)
    logging.getLogger("onnxscript").setLevel(logging.WARNING)
    print(student(args.name, args.seed))


if __name__ == "__main__":
    main()
