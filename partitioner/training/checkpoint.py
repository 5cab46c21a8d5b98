"""Checkpoints: state dicts alone, written whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from ...runtime.errors import TrainingError, first_line

_SPARE_BYTES = 64 << 20


def save(state: dict[str, Any], path: Path) -> None:
    """Write a state beside its place, and then put it there.

    Args:
        state: tensors, numbers, text, lists and dicts of those: what `torch.load(weights_only=True)` reads.
        path: where.

    Raises:
        TrainingError: the disk is full. What was at `path` is still there.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    # torch's own writer says RuntimeError where the disk is full.
    except (OSError, RuntimeError) as error:
        aside.unlink(missing_ok=True)
        raise TrainingError(
            f"{path}: the checkpoint cannot be written ({first_line(error)}); the last one is still there: make room, "
            "and give the same command again"
        ) from None


def restore(path: Path) -> dict[str, Any] | None:
    """The state at `path`, or None where there is none.

    Raises:
        TrainingError: a file that is no checkpoint.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    # torch has errors of its own for a bad file.
    except Exception as error:  # noqa: BLE001
        raise TrainingError(f"{path} is no checkpoint ({first_line(error)}); remove it to begin again") from None
    return state


def require_space(folder: Path, state_bytes: int) -> None:
    """Refuse to begin what could not be kept.

    Raises:
        TrainingError: saying how much is there and how much is needed.
    """
    needed = 4 * state_bytes + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise TrainingError(
            f"{folder}: {free >> 20} MiB are free, and checkpoints and graphs need about {needed >> 20} MiB"
        )
