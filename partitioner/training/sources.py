"""Where labelled pictures come from: class folders, `.npz`, the digits, and datasets of one's own.

Nothing is decoded here but the headers: a `Listing` knows its labels, and gives a picture when it is asked.
"""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import NarrowsError, SourceError, UsageError
from ...runtime.images import SUFFIXES, load_image
from ..digits import load_digits

_TRAIN = "train"
_VALIDATION = ("val", "valid", "validation", "test")
"""Names of the held-out part, the first that is there."""
MAX_ARRAY_BYTES = 32 << 30
"""Of one array in an `.npz` file, as its header says; nothing is read beyond."""


class Listing(Protocol):
    """Pictures that can be asked for one by one, from several threads."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """`[N]`"""
        ...

    def __len__(self) -> int: ...

    def picture(self, i: int) -> NDArray[np.uint8]:
        """Picture `i`, `uint8 [height, width, 3]`.

        Raises:
            SourceError: it cannot be read.
        """
        ...


@dataclass(frozen=True)
class Source:
    """What was found."""

    name: str
    classes: tuple[str, ...]
    parts: tuple[Listing, ...]
    """The training part, and the validation part where there is one."""


def read_source(source: str | Path | Any) -> Source:
    """Find out what the data are.

    Args:
        source: as for `data.read_data`. What a callable returns, or is handed in directly: a dataset, or a pair of
            them for training and validation. A dataset is a pair of arrays `(x, y)`, or has `len` and `[i]` giving
            `(picture, label)`, the picture a PIL image, `uint8 [height, width, 3]` or a `uint8` tensor
            `[3, height, width]`; `classes`, where it has the attribute, are its classes' names.

    Raises:
        SourceError: nothing readable is there.
        UsageError: it is no data of these kinds.
        MissingDependencyError: scikit-learn, for the digits, is not installed.
    """
    if not isinstance(source, str | Path):
        return _datasets(source, "the data")
    if source == "digits":
        digits = load_digits()
        names = tuple(str(digit) for digit in range(10))
        parts = Arrays(digits.train_x, digits.train_y), Arrays(digits.test_x, digits.test_y)
        return Source("digits", names, parts)
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".npz":
        return _npz(path)
    module, colon, attribute = str(source).partition(":")
    if colon and module and attribute and not path.exists():
        return _own(module, attribute)
    raise SourceError(
        f"{source}: data are a folder of class folders, an .npz file with x and y, `digits` or "
        f"package.module:callable; {'this file is none' if path.exists() else 'no such file or folder'}"
    )


# -- class folders -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Files:
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    def picture(self, i: int) -> NDArray[np.uint8]:
        return load_image(self.paths[i])


def _folder(root: Path) -> Source:
    train = root / _TRAIN
    if not train.is_dir():
        classes = _class_folders(root)
        return Source(str(root), classes, (_files(root, classes),))
    held = next((root / name for name in _VALIDATION if (root / name).is_dir()), None)
    classes = _class_folders(train)
    if held is None:
        return Source(str(root), classes, (_files(train, classes),))
    if differ := sorted(set(classes) ^ set(_class_folders(held))):
        raise UsageError(
            f"{root}: {train.name} and {held.name} have different classes: {', '.join(differ[:8])} "
            f"{'are' if len(differ) > 1 else 'is'} in one of them only"
        )
    return Source(str(root), classes, (_files(train, classes), _files(held, classes)))


def _class_folders(root: Path) -> tuple[str, ...]:
    names = tuple(sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith(".")))
    if not names:
        raise SourceError(f"{root}: no class folders in it; pictures are expected in {root}/CLASS/")
    return names


def _files(root: Path, classes: Sequence[str]) -> _Files:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        mine = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not mine:
            raise SourceError(f"{root / name}: no pictures in this class folder ({', '.join(sorted(SUFFIXES))})")
        paths += mine
        labels += [label] * len(mine)
    return _Files(tuple(paths), np.array(labels, np.int64))


# -- arrays ------------------------------------------------------------------------------------------------------------


class Arrays:
    """Pictures in one array.

    Args:
        x: `uint8 [N, height, width, 3]`, or grey `[N, height, width]` or `[N, height, width, 1]`.
        y: integers `[N]`.
        name: of the data, for messages.

    Raises:
        UsageError: they are none.
    """

    def __init__(self, x: Any, y: Any, name: str = "the data") -> None:
        pictures, labels = np.asarray(x), np.asarray(y)
        check_pictures(name, pictures.dtype, pictures.shape)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or len(labels) != len(pictures):
            raise UsageError(
                f"{name}: y is an integer class for each of the {len(pictures)} pictures; "
                f"{labels.dtype} {list(labels.shape)} came"
            )
        self._pictures = pictures[..., None] if pictures.ndim == 3 else pictures
        self.labels: NDArray[np.int64] = labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def picture(self, i: int) -> NDArray[np.uint8]:
        """Picture `i`, `uint8 [height, width, 3]`."""
        return rgb(self._pictures[i])


def check_pictures(name: str, dtype: Any, shape: Sequence[int]) -> None:
    """Refuse what is no array of pictures.

    Raises:
        UsageError: it is none.
    """
    fits = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if dtype != np.uint8 or not fits or 0 in shape:
        raise UsageError(
            f"{name}: x is uint8 [N, height, width, 3], bytes as a camera gives them (normalisation is the teacher's); "
            f"{dtype} {list(shape)} came"
        )


def rgb(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A grey picture three times over; others as they are."""
    if picture.ndim == 2:
        picture = picture[..., None]
    return np.broadcast_to(picture, (*picture.shape[:2], 3)) if picture.shape[2] == 1 else picture


def _npz(path: Path) -> Source:
    names, pairs = read_npz(path)
    parts = [Arrays(x, y, where) for where, x, y in pairs]
    return Source(str(path), _classes(names, parts), tuple(parts))


def read_npz(path: Path) -> tuple[tuple[str, ...] | None, list[tuple[str, NDArray[Any], NDArray[Any]]]]:
    """The classes' names, where it has some, and for each part its name for messages, pictures and targets, unchecked.

    Raises:
        SourceError: no readable file of arrays.
        UsageError: arrays are missing, or too large.
    """
    arrays = _load(path)
    if missing := [key for key in ("x", "y") if key not in arrays]:
        raise UsageError(f"{path}: no array {' and no '.join(missing)} in it; it has {', '.join(sorted(arrays))}")
    pairs = [(str(path), arrays["x"], arrays["y"])]
    held = next((name for name in _VALIDATION if f"x_{name}" in arrays), None)
    if held is not None:
        if f"y_{held}" not in arrays:
            raise UsageError(f"{path}: x_{held} without y_{held}")
        pairs.append((f"{path}: {held}", arrays[f"x_{held}"], arrays[f"y_{held}"]))
    return tuple(str(name) for name in arrays["classes"]) if "classes" in arrays else None, pairs


def _load(path: Path) -> Mapping[str, NDArray[Any]]:
    """Every array of the file that matters, each held against the cap by its header before it is read."""
    wanted = {"x", "y", "classes"} | {f"{a}_{name}" for a in "xy" for name in _VALIDATION}
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                if entry.removesuffix(".npy") in wanted:
                    with archive.open(entry) as stream:
                        _check_header(path, entry, stream)
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files if key in wanted} or dict.fromkeys(file.files, np.empty(0))
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise SourceError(f"{path}: no readable file of arrays ({error})") from None


def _check_header(path: Path, entry: str, stream: IO[bytes]) -> None:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    size = dtype.itemsize * int(np.prod([float(n) for n in shape]))
    if size > MAX_ARRAY_BYTES:
        raise UsageError(f"{path}: {entry} says that it takes {size >> 20} MiB; the limit is {MAX_ARRAY_BYTES >> 20}")


def _classes(names: Sequence[str] | None, parts: Sequence[Listing]) -> tuple[str, ...]:
    """The classes' names; their numbers where nobody names them."""
    if names is not None:
        return tuple(names)
    largest = max((int(part.labels.max()) for part in parts if len(part)), default=-1)
    return tuple(str(label) for label in range(largest + 1))


# -- datasets of one's own ---------------------------------------------------------------------------------------------


class _Items:
    """A dataset that is asked item by item."""

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset, self._name = dataset, name
        try:
            count = len(dataset)
            targets = getattr(dataset, "targets", None)
            labels = targets if targets is not None and len(targets) == count else [dataset[i][1] for i in range(count)]
            self.labels: NDArray[np.int64] = np.array([int(label) for label in labels], np.int64)
        # The dataset is the user's code, and what it raises is theirs to choose.
        except Exception as error:
            raise UsageError(
                f"{name}: a dataset has a length and gives (picture, label) for [i]; this one does not ({_said(error)})"
            ) from error

    def __len__(self) -> int:
        return len(self.labels)

    def picture(self, i: int) -> NDArray[np.uint8]:
        try:
            item = self._dataset[i][0]
            array = np.asarray(item)
        except Exception as error:
            raise SourceError(f"{self._name}: item {i}: {_said(error)}") from error
        if type(item).__module__.partition(".")[0] == "torch" and array.ndim == 3:
            array = array.transpose(1, 2, 0)
        check_pictures(f"{self._name}: item {i}", array.dtype, (1, *array.shape))
        return rgb(np.ascontiguousarray(array))


def _own(module: str, attribute: str) -> Source:
    """Import `module` and call `attribute` of it. The working folder is searched, as `python -m` does."""
    name = f"{module}:{attribute}"
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise SourceError(f"{name} cannot be imported ({error}), and is no file either") from None
    except AttributeError:
        raise SourceError(f"{module} has no {attribute!r}") from None
    try:
        made = found() if callable(found) else found
    except NarrowsError:
        raise
    except Exception as error:
        raise SourceError(f"{name}: {_said(error)}") from error
    return _datasets(made, name)


def _datasets(made: Any, name: str) -> Source:
    pair = isinstance(made, tuple) and len(made) == 2 and not _is_arrays(made)
    given = list(cast(Sequence[Any], made)) if pair else [made]
    parts = [
        Arrays(one[0], one[1], name) if _is_arrays(one) else _Items(one, name if i == 0 else f"{name}: validation")
        for i, one in enumerate(given)
    ]
    if not all(len(part) for part in parts):
        raise SourceError(f"{name}: no pictures in it")
    named = getattr(given[0], "classes", None)
    return Source(name, _classes([str(n) for n in named] if named is not None else None, parts), tuple(parts))


def _is_arrays(one: Any) -> bool:
    return isinstance(one, tuple) and len(one) == 2 and all(hasattr(a, "dtype") and hasattr(a, "shape") for a in one)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().rstrip(":")
