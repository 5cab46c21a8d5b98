"""Real models and photographs, where they are: `$NARROWS_MATERIAL`, or `shared/` beside the project."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(os.environ.get("NARROWS_MATERIAL") or Path(__file__).resolve().parents[2] / "shared")
ABSENT = f"no real models and data in {FOLDER} (NARROWS_MATERIAL)"


def model_path(name: str) -> Path:
    """A pre-trained model; the test skips where it is not."""
    path = FOLDER / "models" / name
    if not path.is_file():
        pytest.skip(ABSENT)
    return path


def photographs(folder: Path, count: int) -> list[Path]:
    """Write `count` photographs into a folder, evenly spread over the pack; the test skips where there are none."""
    pack = FOLDER / "data" / "imagenet500_256q90.npz"
    if not pack.is_file():
        pytest.skip(ABSENT)
    with np.load(pack) as data:
        blob, offsets = data["jpeg"].tobytes(), data["off"]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for row in np.linspace(0, len(offsets) - 2, count).astype(int):
        paths.append(folder / f"{row:05d}.jpg")
        paths[-1].write_bytes(blob[offsets[row] : offsets[row + 1]])
    return paths
