"""What ends a training before its time, and what is left of it then."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import students
import torch
from narrows.partitioner.training import ImageData, Part, train
from narrows.partitioner.training import checkpoint as checkpoints
from narrows.partitioner.training.loop import CHECKPOINT
from narrows.runtime.errors import TrainingError, UsageError
from torch import nn

DATA = students.some(256, 64)
SCRIPT = Path(__file__).with_name("training_process.py")


def run_until(folder: Path, line: str | None) -> None:
    """Start the training; kill it without warning when it prints a line that begins so."""
    process = subprocess.Popen([sys.executable, str(SCRIPT), str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for said in process.stdout:
            if line is not None and said.startswith(line):
                process.kill()
                break
    finally:
        process.stdout.close()
        process.wait(timeout=120)
    assert (process.returncode == 0) == (line is None)


def test_a_training_killed_in_every_stage_ends_as_one_that_was_not(tmp_path: Path) -> None:
    run_until(tmp_path / "whole", None)
    for line in ("stage 1: features 11/", "stage 2: fine-tune 3/", "stage 3: whole 5/"):
        run_until(tmp_path / "killed", line)
    run_until(tmp_path / "killed", None)
    whole, killed = (torch.load(tmp_path / name / "student.pt", weights_only=True) for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, killed[name]), name


class Sick(nn.Module):
    """Puts out what is no number once it has been run often enough."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.convolution, self.left = nn.Conv2d(3, 4, 4, 4), after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= self.training
        return self.convolution(x) * (float("nan") if self.left < 0 else 1.0)


def pair(encoder: nn.Module):
    from narrows.partitioner.training import Pair

    up = nn.Upsample(size=(12, 12))
    return Pair(encoder, nn.Sequential(up, nn.Conv2d(4, 16, 3, 1, 1)))


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_last_good_state(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"stage 1, features, epoch 2, step 4\).*last good state.*smaller learning"):
        train(students.teacher(trained=False), DATA, students.QUICK, output=tmp_path, at="middle", pair=pair(Sick(7)))
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert (state["position"]["epoch"], state["position"]["step"]) == (1, 0)
    assert all(bool(torch.isfinite(t).all()) for t in state["student"].values())
    trained = train(
        students.teacher(trained=False), DATA, students.QUICK, output=tmp_path, at="middle", pair=pair(Sick(10**6))
    )
    assert bool(torch.isfinite(trained.student.quantiser.log_steps).all())


def test_another_run_in_the_same_folder_is_refused_by_name(tmp_path: Path) -> None:
    options = replace(students.QUICK, epochs=(1, 0))
    train(students.teacher(trained=False), DATA, options, output=tmp_path, at="middle")
    with pytest.raises(TrainingError, match="another rates, seed: give the same options"):
        train(
            students.teacher(trained=False),
            DATA,
            replace(options, seed=7, rates=(1e-3, 1e-3)),
            output=tmp_path,
            at="middle",
        )


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"PK\x03\x04 but not really")
    with pytest.raises(TrainingError, match=r"checkpoint\.pt is no checkpoint"):
        train(students.teacher(trained=False), DATA, students.QUICK, output=tmp_path, at="middle")


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    checkpoints.save({"step": 1}, path)
    with pytest.raises(TrainingError, match="the last one is still there"):
        checkpoints.save({"step": 2}, tmp_path / "absent" / "c.pt")
    assert checkpoints.restore(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_too_little_disk_is_said_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: full)
    with pytest.raises(TrainingError, match="1 MiB are free"):
        train(students.teacher(trained=False), DATA, students.QUICK, output=tmp_path, at="middle")


def test_a_stage_ends_early_where_nothing_gets_better_and_goes_back_to_the_best(tmp_path: Path) -> None:
    told = []
    options = replace(students.QUICK, epochs=(6, 0), patience=1, rates=(0.5, 0.5))
    train(
        students.teacher(trained=False),
        DATA,
        options,
        output=tmp_path,
        at="middle",
        progress=lambda _stage, done, total: told.append((done, total)),
    )
    assert told[-1][0] < told[-1][1]
    best = torch.load(tmp_path / "best-0.pt", weights_only=True)["student"]
    last = torch.load(tmp_path / CHECKPOINT, weights_only=True)["student"]
    assert all(torch.equal(best[name], last[name]) for name in best)


def test_classes_and_sizes_that_do_not_match_are_refused(tmp_path: Path) -> None:
    full = DATA
    few = ImageData("few", ("a", "b"), full.train, full.validation)
    with pytest.raises(UsageError, match="tells 10 classes apart"):
        train(students.teacher(trained=False), few, students.QUICK, output=tmp_path)
    small = Part(np.zeros((8, 16, 16, 3), np.uint8), np.zeros(8, np.int64))
    with pytest.raises(UsageError, match=r"16×16.*24×24"):
        train(
            students.teacher(trained=False),
            ImageData("small", full.classes, small, small),
            students.QUICK,
            output=tmp_path,
        )
