"""Calibration data: frames as the head will get them, out of a folder of pictures or a file of arrays."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..runtime.errors import SourceError, UsageError
from ..runtime.images import SUFFIXES, fit, load_image
from ..runtime.manifest import Preprocess, TensorSpec
from .shapes import Probe, made_up_inputs, nominal_size, open_dimensions

logger = logging.getLogger(__name__)

Array = NDArray[Any]
Frame = tuple[Array, ...]
"""One array per model input, without a batch axis where the model takes batches."""
Calibration = str | Path | Array | Mapping[str, Array]

DEFAULT_FRAMES = 64


def read_frames(
    source: Calibration, inputs: Sequence[TensorSpec], preprocess: Preprocess | None, limit: int = DEFAULT_FRAMES
) -> list[Frame]:
    """Read frames, evenly spread over what is there.

    Args:
        source: a picture, a folder of pictures (searched in depth), an `.npz` or `.npy` file, an array, or arrays by
            input name. The first axis of an array counts the frames.
        inputs: what the model takes.
        preprocess: how pictures are fitted; None for a model that takes raw tensors.
        limit: at most so many frames.

    Raises:
        SourceError: nothing readable is there.
        UsageError: pictures for a model without preprocessing, or arrays of another shape.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if path.suffix not in (".npz", ".npy"):
            return _pictures(path, preprocess, limit)
        source = _load(path)
    if isinstance(source, np.ndarray):
        source = {"": source}
    return _arrays(source, inputs, preprocess, limit)


def made_up_frames(proto: onnx.ModelProto, batched: bool, count: int) -> list[Frame]:
    """Frames of noise, for a proof without data."""
    probe = Probe(1, {name: nominal_size(proto, name) for name in open_dimensions(proto)})
    feeds = [made_up_inputs(proto, probe, seed) for seed in range(count)]
    return [tuple(array[0] if batched else array for array in feed.values()) for feed in feeds]


def _pictures(path: Path, preprocess: Preprocess | None, limit: int) -> list[Frame]:
    if preprocess is None:
        raise UsageError(f"{path}: pictures need --preprocess, which says how they become the model's input")
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise SourceError(f"{path}: no pictures in it ({', '.join(sorted(SUFFIXES))})")
    frames: list[Frame] = []
    for file in spread(files, limit):
        try:
            frames.append((fit(load_image(file), preprocess),))
        except SourceError as error:
            logger.warning("left out: %s", error)
    if not frames:
        raise SourceError(f"{path}: none of its {len(files)} pictures can be read")
    return frames


def _load(path: Path) -> Mapping[str, Array]:
    try:
        loaded = np.load(path, allow_pickle=False)
        return {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path}: no readable file of arrays ({error})") from None


def _arrays(
    arrays: Mapping[str, Array], inputs: Sequence[TensorSpec], preprocess: Preprocess | None, limit: int
) -> list[Frame]:
    names = [spec.name for spec in inputs]
    if len(arrays) == 1 and len(inputs) == 1:
        columns = list(arrays.values())
    elif missing := [name for name in names if name not in arrays]:
        raise UsageError(f"calibration data: no array for {', '.join(missing)}; it has {', '.join(arrays)}")
    else:
        columns = [arrays[name] for name in names]
    counts = {len(column) if column.ndim else 0 for column in columns}
    if len(counts) != 1 or 0 in counts:
        raise UsageError(f"calibration data: arrays have {sorted(counts)} frames; all need the same number, and one")
    chosen = spread(range(counts.pop()), limit)
    if preprocess is not None:
        return [(fit(columns[0][i], preprocess),) for i in chosen]
    return [tuple(_shape(column[i], spec) for column, spec in zip(columns, inputs, strict=True)) for i in chosen]


def _shape(array: Array, spec: TensorSpec) -> Array:
    """One frame's array in the input's own type and shape.

    Raises:
        UsageError: it does not fit.
    """
    dtype = np.dtype(spec.dtype)
    if array.ndim == len(spec.shape) - 1 and spec.shape[0] == 1:
        array = array[None]
    elif array.ndim == len(spec.shape) + 1 and array.shape[0] == 1:
        array = array[0]
    fits = len(array.shape) == len(spec.shape) and all(
        want in (None, have) for want, have in zip(spec.shape, array.shape, strict=True)
    )
    if not fits or not np.can_cast(array.dtype, dtype, "same_kind"):
        shape = "×".join("?" if d is None else str(d) for d in spec.shape)
        raise UsageError(
            f"calibration data for {spec.name!r}: frames of {spec.dtype} {shape} were expected, "
            f"{array.dtype} {'×'.join(map(str, array.shape))} came"
        )
    return np.ascontiguousarray(array, dtype)


def spread(items: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit` of the items, evenly spread."""
    if len(items) <= limit:
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]
