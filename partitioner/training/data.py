"""Labelled pictures to train on: read with limits, split with a seed, and named where something is wrong with them.

    data = read_data("photos/", Preprocess(144, 144))
    data.check_classes(5)
    data.train.pictures  # uint8 [N, 144, 144, 3]

Every picture is decoded once and kept at the size that the head takes, by the very `fit` that a device uses: in memory
up to a limit, in a file that goes with the process beyond it.
"""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import SourceError, UsageError
from ...runtime.images import fit
from ...runtime.manifest import Preprocess
from .sources import Listing, Source, read_source

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

_NAMED = 8
"""Pictures that were left out, or classes, that a message names."""
_SPARE_BYTES = 256 << 20
"""Of the temporary folder's disk, left to others."""


@dataclass(frozen=True)
class DataOptions:
    """How data are read."""

    validation: float = 0.15
    """Share of each class that is held out, where the data come without a validation part of their own."""
    seed: int = 0
    """Of that split."""
    workers: int = 2
    """Threads that decode."""
    max_pictures: int = 5_000_000
    max_classes: int = 100_000
    memory_bytes: int = 4 << 30
    """Decoded pictures beyond this are kept in a file in the temporary folder."""

    def __post_init__(self) -> None:
        if not 0 < self.validation < 1:
            raise UsageError(f"the share held out for validation is between 0 and 1, not {self.validation}")
        if min(self.workers, self.max_pictures, self.max_classes) < 1 or self.memory_bytes < 0:
            raise UsageError("workers and limits are 1 or more")


@dataclass(frozen=True)
class Part:
    """Pictures with their classes."""

    pictures: NDArray[np.uint8]
    """`[N, height, width, 3]`, RGB; may be mapped from a file."""
    labels: NDArray[np.int64]
    """`[N]`, each below the number of classes."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageData:
    """What a student is trained on and measured by."""

    name: str
    classes: tuple[str, ...]
    train: Part
    validation: Part
    skipped: tuple[str, ...] = ()
    """Why a picture was left out, one line each."""

    def check_classes(self, outputs: int) -> None:
        """Hold the classes against the number of classes that the teacher tells apart.

        Raises:
            UsageError: they differ.
        """
        if outputs != len(self.classes):
            raise UsageError(
                f"the teacher tells {outputs} classes apart, but {self.name} has {len(self.classes)} "
                f"({shortened(self.classes)}): give data with the teacher's classes, in its order"
            )


def read_data(
    source: str | Path | Any,
    preprocess: Preprocess,
    options: DataOptions | None = None,
    progress: Progress | None = None,
) -> ImageData:
    """Read labelled pictures.

    Args:
        source: a folder of class folders, or of `train` and `val` (`valid`, `validation`, `test`) with class folders;
            an `.npz` file with `x` `uint8 [N, height, width, 3]` and `y` `[N]` (and `x_val`, `y_val`, `classes`);
            `digits`; `package.module:callable`, or what such a callable returns (`sources.py`).
        preprocess: the size that pictures are fitted to, and how.
        options: split and limits.
        progress: told of pictures decoded.

    Raises:
        SourceError: nothing readable is there, or a class has no readable picture.
        UsageError: the data are not labelled pictures, exceed a limit, or their parts have different classes.
        MissingDependencyError: reading them needs a library that is not installed.
    """
    options = options or DataOptions()
    found = read_source(source)
    _check(found, options)
    tell = progress or (lambda *_: None)
    reader = _Reader(found.name, preprocess, options, tell, sum(len(part) for part in found.parts))
    parts = [reader.read(part) for part in found.parts]
    if reader.skipped:
        named = "\n  ".join([*islice(reader.skipped, _NAMED), *(["…"] if len(reader.skipped) > _NAMED else [])])
        logger.warning("%s: left out %d of %d pictures:\n  %s", found.name, len(reader.skipped), reader.total, named)
    for part, which in zip(parts, ("train", "validation"), strict=False):
        _check_every_class(part, found, which if len(parts) > 1 else "", len(reader.skipped))
    train, validation = parts if len(parts) == 2 else split(parts[0], found.classes, options)
    return ImageData(found.name, found.classes, train, validation, tuple(reader.skipped))


def split(part: Part, classes: Sequence[str], options: DataOptions) -> tuple[Part, Part]:
    """Hold a share of every class out; the same pictures for the same seed.

    Raises:
        SourceError: a class has a single picture.
    """
    rng = np.random.default_rng(options.seed)
    held = np.zeros(len(part), bool)
    for label, name in enumerate(classes):
        rows = np.flatnonzero(part.labels == label)
        if len(rows) < 2:
            raise SourceError(f"class {name!r} has one picture: two are the least, to train on one and try the other")
        count = min(len(rows) - 1, max(1, round(options.validation * len(rows))))
        held[rng.choice(rows, count, replace=False)] = True
    return Part(part.pictures[~held], part.labels[~held]), Part(part.pictures[held], part.labels[held])


def shortened(names: Sequence[str]) -> str:
    """The first of the names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _check(found: Source, options: DataOptions) -> None:
    """What can be said before a picture is decoded.

    Raises:
        UsageError: a limit is exceeded, there is one class only, or a label has no class.
    """
    count = sum(len(part) for part in found.parts)
    if count > options.max_pictures:
        raise UsageError(f"{found.name}: {count} pictures are more than the limit of {options.max_pictures}")
    if not 2 <= len(found.classes) <= options.max_classes:
        raise UsageError(
            f"{found.name}: {len(found.classes)} classes; between 2 and {options.max_classes} were expected"
        )
    for part in found.parts:
        outside = (part.labels < 0) | (part.labels >= len(found.classes))
        if np.any(outside):
            raise UsageError(
                f"{found.name}: label {part.labels[outside][0]} is outside its {len(found.classes)} classes, 0 to "
                f"{len(found.classes) - 1}"
            )


def _check_every_class(part: Part, found: Source, which: str, skipped: int) -> None:
    empty = [name for i, name in enumerate(found.classes) if not np.any(part.labels == i)]
    if empty:
        where = f" in its {which} part" if which else ""
        left_out = f" ({skipped} pictures could not be read)" if skipped else ""
        raise SourceError(f"{found.name}: no picture of class {shortened(empty)}{where}{left_out}")


class _Reader:
    """Decodes and fits every picture once."""

    def __init__(self, name: str, preprocess: Preprocess, options: DataOptions, tell: Progress, total: int) -> None:
        self.name, self.preprocess, self.options, self.tell, self.total = name, preprocess, options, tell, total
        self.skipped: list[str] = []
        self.done = 0
        self.kept_bytes = 0

    def read(self, part: Listing) -> Part:
        shape = (len(part), self.preprocess.height, self.preprocess.width, 3)
        pictures = self._room(shape)
        kept = []
        with ThreadPoolExecutor(self.options.workers) as pool:
            waiting: list[Future[str | None]] = []
            for i in range(len(part)):
                waiting.append(pool.submit(self._one, part, i, pictures))
                # As many in flight as keep the threads busy, so that a fault or Ctrl-C ends it soon.
                if len(waiting) >= 8 * self.options.workers:
                    kept.append(self._settle(waiting.pop(0)))
            kept.extend(self._settle(one) for one in waiting)
        rows = np.array(kept, bool)
        return Part(pictures, part.labels) if rows.all() else Part(pictures[rows], part.labels[rows])

    def _one(self, part: Listing, i: int, pictures: NDArray[np.uint8]) -> str | None:
        """Put picture `i` in its place; why not, where it cannot be read."""
        try:
            pictures[i] = fit(part.picture(i), self.preprocess)
        except SourceError as error:
            return str(error)
        return None

    def _settle(self, one: Future[str | None]) -> bool:
        fault = one.result()
        if fault is not None:
            self.skipped.append(fault)
        self.done += 1
        self.tell("reading pictures", self.done, self.total)
        return fault is None

    def _room(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Memory for the pictures, or a file where that would be too much.

        Raises:
            SourceError: the disk has no room for it.
        """
        size = math.prod(shape)
        if self.kept_bytes + size <= self.options.memory_bytes:
            self.kept_bytes += size
            return np.empty(shape, np.uint8)
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if size + _SPARE_BYTES > free:
            raise SourceError(
                f"{self.name}: its pictures take {size >> 20} MiB decoded, more than the "
                f"{self.options.memory_bytes >> 20} MiB of memory allowed, and the temporary folder has "
                f"{free >> 20} MiB left: set TMPDIR to a larger disk"
            )
        # An unnamed file: nothing is left behind, however the process ends.
        with tempfile.TemporaryFile(prefix="narrows.") as file:
            file.truncate(size)
            return np.memmap(file, np.uint8, "r+", shape=shape)
