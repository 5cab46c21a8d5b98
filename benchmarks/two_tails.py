"""One payload, two answers: a second tail on a frozen encoder beside a student that was trained for its task alone.

    python benchmarks/two_tails.py [--seed 0] [--json]

The encoder is that of the flowers' Entropic Student (`students.py`), which learns features and is then frozen. The
second question, which way up a flower is, gets a tail of its own on that encoder and a teacher to learn from; beside it
stands a student with an encoder for that question alone. All answers come from a real server, to a device that asks for
both tails at once. Trains what is not in the cache: a quarter of an hour.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import report
from narrows.device import Device
from narrows.partitioner.training import Task, Trained
from narrows.partitioner.training.data import Part
from narrows.partitioner.training.heads import classifier
from narrows.partitioner.training.recipe import run_recipe
from narrows.server_process import server_process
from students import RECIPES, folder_of, student, subject
from teachers import FLOWERS, cache_folder, pack, turned
from torch.nn import functional

FIRST, SECOND = "flowers-entropic-480", "turned-entropic-480"
BOTH = "flowers-two-tails"
TAIL = "turned"


def turned_task(trained: Trained) -> Task:
    """What `--tail turned=two_tails:turned_task` trains."""
    return Task(
        TAIL,
        classifier(trained, 2),
        turned(pack(FLOWERS, "train").part, both=False),
        turned(pack(FLOWERS, "test").part, both=True),
        functional.cross_entropy,
        augmentation=trained.options.augmentation,
        labels=("upright", "upside down"),
        teacher=subject("turned")[0],
    )


def with_second_tail(seed: int) -> Path:
    """The flowers' student with the second tail in its bundle; trained now, or from the cache."""
    student(FIRST, seed)
    run = cache_folder() / "students" / f"{BOTH}-{seed}"
    bundle = run / "bundles" / BOTH
    if not bundle.exists():
        run.mkdir(exist_ok=True)
        shutil.copy(folder_of(FIRST, seed) / "checkpoint.pt", run)
        teacher, data = subject("flowers")
        options, at = replace(RECIPES[FIRST].options, seed=seed), RECIPES[FIRST].at
        tails = [f"{TAIL}=two_tails:turned_task"]
        run_recipe(teacher, data, options, output=run, at=at, tails=tails, name=BOTH, progress=lambda *_: None)
    return bundle


def answered(bundle: Path, part: Part, tails: Sequence[str]) -> dict[str, tuple[float, float]]:
    """For each tail, the share of right answers and the mean bytes on the wire, from a real server."""
    right = dict.fromkeys(tails, 0)
    sent = []
    with (
        server_process(bundle.parent) as served,
        Device(bundle, served.address, tails=tails) as device,
    ):
        for picture, label in zip(part.pictures, part.labels, strict=True):
            outcome = device.infer(picture)
            if outcome.error is not None:
                raise RuntimeError(outcome.error)
            sent.append(outcome.wire_bytes)
            for tail in tails:
                right[tail] += int(outcome.answers[tail].top[0].index == label)
    return {tail: (count / len(part), float(np.mean(sent))) for tail, count in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the students")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    test = pack(FLOWERS, "test").part
    both = with_second_tail(args.seed)
    kinds = ("main", TAIL)
    upright, two_ways = answered(both, test, kinds), answered(both, turned(test, both=True), kinds)
    alone = {
        "main": answered(student(FIRST, args.seed), test, ("main",))["main"],
        TAIL: answered(student(SECOND, args.seed), turned(test, both=True), ("main",))["main"],
    }
    shared = {"main": upright["main"], TAIL: two_ways[TAIL]}
    rows: list[dict[str, Any]] = [
        {
            "question": question,
            "pictures": len(test) * (2 if tail == TAIL else 1),
            "two tails": f"{100 * shared[tail][0]:.2f}",
            "alone": f"{100 * alone[tail][0]:.2f}",
            "points": f"{100 * (shared[tail][0] - alone[tail][0]):+.2f}",
            "bytes": f"{shared[tail][1]:.0f}",
            "alone, bytes": f"{alone[tail][1]:.0f}",
        }
        for question, tail in (("which flower?", "main"), ("which way up?", TAIL))
    ]
    note = "share of right answers in %; one payload for both tails, bytes on the wire"
    report("Two tails on one encoder", rows, as_json=args.json, note=note)


if __name__ == "__main__":
    main()
