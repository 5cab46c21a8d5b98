"""What is measured with: pictures and, where their folders say so, their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..device.sources import natural, open_source
from ..runtime.answer import Array
from ..runtime.bundle import Bundle
from ..runtime.errors import SourceError
from ..runtime.halves import load_arrays
from ..runtime.images import SUFFIXES
from ..runtime.manifest import Manifest

_CASES = 4
"""Frames that a bundle's one golden frame is shown as."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One input."""

    arrays: tuple[Array, ...]
    """One per input of the model, without a batch axis."""
    label: int | None = None
    """The right class, where it is known."""


def read_frames(bundle: Bundle, images: Path | None, count: int) -> tuple[list[Frame], bool]:
    """Frames to measure with, and whether they are the user's own.

    Args:
        bundle: says what a frame is; its golden frame is taken where there are no images.
        images: what `narrows run --input` takes.
        count: at most so many, evenly spread.

    Raises:
        SourceError: nothing readable is there, or the bundle has no golden frame of all inputs.
    """
    manifest = bundle.manifest
    if images is None:
        return [_golden(bundle)] * min(count, _CASES), False
    found: list[Frame] = []
    for path in _chosen(images, count):
        for item in open_source(path, manifest):
            if item.error is None:
                found.append(Frame(item.arrays, _label(Path(item.source), manifest)))
            if len(found) >= count:
                break
    if not found:
        raise SourceError(f"{images}: nothing in it can be read as an input of {manifest.name!r}")
    return found, True


def _chosen(images: Path, count: int) -> Sequence[Path]:
    if not images.is_dir():
        return [images]
    pictures = sorted((file for file in images.rglob("*") if file.suffix.lower() in SUFFIXES), key=natural)
    if not pictures:
        return [images]
    return [pictures[i * len(pictures) // count] for i in range(count)] if len(pictures) > count else pictures


def _label(path: Path, manifest: Manifest) -> int | None:
    folder = path.parent.name
    if folder in manifest.labels:
        return manifest.labels.index(folder)
    return int(folder) if folder.isdecimal() else None


def _golden(bundle: Bundle) -> Frame:
    cut = bundle.manifest.cuts[0]
    golden = load_arrays(bundle, cut.golden_head)
    known = {name: golden[f"input/{i}"] for i, name in enumerate(cut.head_inputs)}
    missing = [spec.name for spec in bundle.manifest.inputs if spec.name not in known]
    if missing:
        raise SourceError(f"the bundle's golden frame lacks {', '.join(missing)}: give inputs with --images")
    return Frame(tuple(np.asarray(known[spec.name]) for spec in bundle.manifest.inputs))
