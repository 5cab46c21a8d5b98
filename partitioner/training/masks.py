"""Pictures with a class for every pixel, for a tail that segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import UsageError
from ...runtime.manifest import Preprocess
from .data import DataOptions, ImageData, Part
from .measures import IGNORED
from .sources import check_pictures, read_npz, rgb


def read_masks(path: str | Path, preprocess: Preprocess, options: DataOptions | None = None) -> ImageData:
    """Read pictures and their masks.

    Args:
        path: an `.npz` with `x` `uint8 [N, height, width, 3]` and `y` integers `[N, height, width]`, 255 where pixels
            count for nothing; and perhaps `classes`, and `x_val` and `y_val` (`valid`, `validation`, `test`).
        preprocess: the size that pictures and masks have to have: a mask is not scaled.
        options: the share that is held out, and the seed, where there is no validation part.

    Returns:
        Data whose labels are the masks, `int64 [N, height, width]`.

    Raises:
        SourceError: no readable file.
        UsageError: it holds something else.
    """
    options = options or DataOptions()
    names, pairs = read_npz(Path(path))
    parts = [_part(where, x, y, preprocess) for where, x, y in pairs]
    classes = names or tuple(str(i) for i in range(1 + max(_largest(part.labels) for part in parts)))
    if len(classes) > IGNORED:
        raise UsageError(f"{path}: {len(classes)} classes; a mask of bytes tells {IGNORED} apart")
    for part in parts:
        if (largest := _largest(part.labels)) >= len(classes):
            raise UsageError(
                f"{path}: a mask has class {largest}, but there are {len(classes)} classes (0 is the first)"
            )
    train, validation = parts if len(parts) == 2 else _split(parts[0], options)
    return ImageData(str(path), classes, train, validation)


def _part(name: str, x: NDArray[Any], y: NDArray[Any], preprocess: Preprocess) -> Part:
    check_pictures(name, x.dtype, x.shape)
    size = (preprocess.height, preprocess.width)
    if x.shape[1:3] != size:
        raise UsageError(
            f"{name}: masks are not scaled, so pictures have the teacher's size, {size[0]}×{size[1]}; "
            f"{x.shape[1]}×{x.shape[2]} came"
        )
    if y.shape != x.shape[:3] or not np.issubdtype(y.dtype, np.integer) or not len(y):
        raise UsageError(
            f"{name}: y is an integer class for each pixel, {list(x.shape[:3])}; {y.dtype} {list(y.shape)} came"
        )
    if int(y.min()) < 0 or _largest(y) > IGNORED:
        raise UsageError(f"{name}: classes are 0 to {IGNORED - 1}, and {IGNORED} where there is none")
    return Part(np.stack([rgb(picture) for picture in x]), y.astype(np.int64))


def _largest(masks: NDArray[Any]) -> int:
    return int(masks.max(initial=0, where=masks != IGNORED))


def _split(part: Part, options: DataOptions) -> tuple[Part, Part]:
    if len(part) < 2:
        raise UsageError("one picture cannot be split into pictures to learn from and to try")
    order = np.random.default_rng(options.seed).permutation(len(part))
    count = min(len(part) - 1, max(1, round(options.validation * len(part))))
    held, kept = np.sort(order[:count]), np.sort(order[count:])
    return Part(part.pictures[kept], part.labels[kept]), Part(part.pictures[held], part.labels[held])
