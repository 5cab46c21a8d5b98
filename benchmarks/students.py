"""The students of `rate_accuracy.py`: how each is trained, and the bundle that comes of it.

python benchmarks/students.py NAME [--seed 0]     # train one of RECIPES, or go on with it
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
from narrows.partitioner.training import Teacher, TrainOptions, train
from narrows.partitioner.training.batches import PHOTOGRAPHS
from narrows.partitioner.training.curves import Curves
from narrows.partitioner.training.data import ImageData, read_data
from narrows.partitioner.training.export import export
from teachers import cache_folder, cifar_data, flowers, flowers_data, resnet20

IMAGENET = "scale=0.00392156862745098,mean=0.485/0.456/0.406,std=0.229/0.224/0.225"


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
    channels=24,
    stride=16,
    decoder_width=64,
    decoder_blocks=1,
    head_params=27_870,
    head_macs=45_000_000,
    epochs=(1, 7),
    rates=(1e-3, 6e-4),
    taps=(),
    batch=32,
    temperature=2.0,
    distil_weight=0.7,
    augmentation=PHOTOGRAPHS,
    views=6,
    precision="bfloat16",
)
RECIPES = {
    "flowers-bottlefit": Recipe("flowers", "BottleFit", "features.10", replace(_FLOWERS, method="bottlefit", levels=8)),
    "flowers-ladder": Recipe(
        "flowers",
        "one model, every rate",
        "features.10",
        replace(_FLOWERS, method="ladder", levels=32, target_bytes=(50, 100, 200, 400)),
    ),
    "flowers-entropic-120": Recipe(
        "flowers",
        "Entropic Student",
        "features.10",
        replace(_FLOWERS, method="entropic", levels=32, target_bytes=(120,), epochs=(4, 4)),
    ),
}


@cache
def subject(name: str) -> tuple[Teacher, ImageData]:
    """The teacher and its pictures."""
    makers: dict[str, tuple[Callable, Callable]] = {
        "flowers": (flowers, flowers_data),
        "cifar10": (resnet20, cifar_data),
    }
    make, data = makers[name]
    module, example = make()
    teacher = Teacher(name, module.requires_grad_(False), _preprocess(example))
    return teacher, read_data(data(), teacher.preprocess)


def _preprocess(example: torch.Tensor):
    from narrows.runtime.manifest import Preprocess
    from teachers import MEAN, STD

    return Preprocess(example.shape[2], example.shape[3], scale=1 / 255, mean=MEAN, std=STD)


def folder_of(name: str, seed: int) -> Path:
    """Of a student's run; `bundle` is in it when it is done."""
    return cache_folder() / "students" / f"{name}-{seed}"


def student(name: str, seed: int) -> Path:
    """Train a student, or go on with it where it was left; its bundle."""
    recipe, folder = RECIPES[name], folder_of(name, seed)
    if (folder / "bundle").exists():
        return folder / "bundle"
    torch.set_num_threads(1)
    teacher, data = subject(recipe.subject)
    options = replace(recipe.options, seed=seed)
    began = time.monotonic()
    curves = Curves(folder)
    trained = train(teacher, data, options, output=folder, at=recipe.at, recorder=curves)
    curves.close()
    took = time.monotonic() - began
    made = export(trained, data, output=folder / "bundle")
    said = {"recipe": name, "seed": seed, "seconds": round(took), "differing": made.differing, "symbols": made.symbols}
    (folder / "trained.json").write_text(json.dumps(said | {"prices": [asdict(p) for p in trained.prices]}, indent=1))
    return folder / "bundle"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    print(student(args.name, args.seed))


if __name__ == "__main__":
    main()
