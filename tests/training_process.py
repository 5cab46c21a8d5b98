"""A training in a process of its own, to be killed: `python training_process.py FOLDER`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import students
import torch
from narrows.partitioner.training import train


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    options = replace(
        students.QUICK,
        method="ladder",
        target_bytes=(12.0, 30.0),
        epochs=(2, 1, 1),
        rates=(8e-3, 4e-3, 2e-3),
        batch=32,
        checkpoint_s=0.0,
    )

    def tell(stage: str, done: int, total: int) -> None:
        print(f"{stage} {done}/{total}", flush=True)

    data = students.some(256, 64)
    trained = train(students.teacher(trained=False), data, options, output=folder, at="middle", progress=tell)
    torch.save(trained.student.state_dict(), folder / "student.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
