"""The students of `rate_accuracy.py`: how each is trained, and the bundle that comes of it.

python benchmarks/students.py NAME [--seed 0]     # train one of RECIPES, or go on with it, and measure it
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
from narrows.partitioner.training import Teacher, TrainOptions, split_teacher, train
from narrows.partitioner.training.batches import PHOTOGRAPHS
from narrows.partitioner.training.curves import Curves
from narrows.partitioner.training.data import ImageData, read_data
from narrows.partitioner.training.export import export
from narrows.partitioner.training.inherit import inherited
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
    inherits: bool = False
    """The pair begins and ends with the teacher's own layers; designed from the shapes otherwise."""


_FLOWERS = TrainOptions(
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
    "flowers-bottlefit": Recipe(
        "flowers", "BottleFit", "features.10", replace(_FLOWERS, method="bottlefit", levels=8), inherits=True
    ),
    "flowers-ladder": Recipe(
        "flowers",
        "one model, every rate",
        "features.10",
        replace(_FLOWERS, method="ladder", levels=32, target_bytes=(50, 100, 200, 400)),
        inherits=True,
    ),
    "flowers-entropic-120": Recipe(
        "flowers",
        "Entropic Student",
        "features.10",
        replace(_FLOWERS, method="entropic", levels=32, target_bytes=(120,), epochs=(4, 4)),
        inherits=True,
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
    pair = None
    if recipe.inherits:
        torch.manual_seed(seed)
        pictures = data.train.pictures[:: max(1, len(data.train) // 512)]
        pair = inherited(teacher, split_teacher(teacher, recipe.at), options, pictures)
    began = time.monotonic()
    curves = Curves(folder)
    trained = train(teacher, data, options, output=folder, at=recipe.at, pair=pair, recorder=curves)
    curves.close()
    took = time.monotonic() - began
    made = export(trained, data, output=folder / "bundle")
    said = {"recipe": name, "seed": seed, "seconds": round(took), "differing": made.differing, "symbols": made.symbols}
    (folder / "trained.json").write_text(json.dumps(said | {"prices": [asdict(p) for p in trained.prices]}, indent=1))
    return folder / "bundle"


def main() -> None:
    import logging

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    from rate_accuracy import student_points
    from teachers import CIFAR, FLOWERS, pack

    recipe = RECIPES[args.name]
    bundle = student(args.name, args.seed)
    part = pack(FLOWERS if recipe.subject == "flowers" else CIFAR, "test").part
    for point in student_points(recipe.method, bundle, part, recipe.subject, args.seed):
        print(json.dumps(asdict(point)), flush=True)


if __name__ == "__main__":
    main()
