"""Where frames come from: pictures, folders, globs, arrays, videos and cameras."""

from __future__ import annotations

import glob
import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..runtime.answer import Array
from ..runtime.errors import MissingDependencyError, NarrowsError, SourceError, UsageError
from ..runtime.images import MAX_PIXELS, SUFFIXES, load_image
from ..runtime.manifest import Manifest
from .inputs import Input, arrange
from .piped import coded_pictures, raw_pictures

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mjpeg", ".mjpg"})
_CAMERA = re.compile(r"camera:(\d+)")
_STREAM = re.compile(r"[a-z][a-z0-9+]*://.+")
_PIPELINE = "gst:"
_PIPE = "-"


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How a source is read."""

    size: tuple[int, int] | None = None
    """Width and height of raw RGB pictures in a pipe; None where JPEG or PNG files come."""
    keep_pictures: bool = False
    """Keep every picture as it was beside the fitted one, for whoever shows it (`Input.picture`)."""

    def __post_init__(self) -> None:
        if self.size is not None and not (min(self.size) > 0 and self.size[0] * self.size[1] <= MAX_PIXELS):
            raise UsageError(f"a picture of {self.size[0]}×{self.size[1]} pixels is none, or too large")


def open_source(where: str | Path, manifest: Manifest, options: SourceOptions | None = None) -> Iterator[Input]:
    """The frames at `where`, read one by one as they are asked for.

    Args:
        where: a picture, an `.npz`, an `.npy` or a video file; a folder (and the folders in it) or a glob of pictures,
            in natural order (`frame2` before `frame10`); "camera:N"; the URL of a stream, such as "rtsp://…"; or
            "gst:" and a GStreamer pipeline that ends in an appsink; or "-", a pipe at standard input.
        manifest: says what one frame is.
        options: how it is read.

    Returns:
        One `Input` a frame. A file that cannot be read is an `Input` with its error, and the rest goes on.

    Raises:
        SourceError: there is nothing at `where`, or nothing that this model takes.
        MissingDependencyError: a video or a camera, without OpenCV.
    """
    text = str(where)
    options = options or SourceOptions()
    if text == _PIPE:
        # Unbuffered: a thread that waits within a buffered reader holds its lock when Python ends.
        return _pipe(open(sys.stdin.fileno(), "rb", buffering=0, closefd=False), manifest, options)
    if options.size is not None:
        raise UsageError("the size of raw pictures goes with the input -, a pipe")
    if camera := _CAMERA.fullmatch(text):
        return _video(int(camera[1]), text, manifest, options)
    if _STREAM.fullmatch(text) or text.startswith(_PIPELINE):
        return _video(text, text, manifest, options)
    paths = _find(text)
    if len(paths) == 1 and paths[0].suffix.lower() in VIDEO_SUFFIXES:
        return _video(str(paths[0]), text, manifest, options)
    if manifest.preprocess is None:
        _refuse_pictures(paths, manifest)
    return (item for path in paths for item in _read(path, manifest, options))


def natural(path: Path) -> list[tuple[int, str]]:
    """Sort key under which `frame2` stands before `frame10`."""
    parts = re.findall(r"\d+|\D+", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _find(text: str) -> Sequence[Path]:
    path = Path(text)
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES | ARRAY_SUFFIXES)
        return _some(files, f"no picture and no array in the folder {text}")
    if path.exists():
        return [path]
    if glob.has_magic(text):
        # Not Path.glob: that takes no absolute patterns.
        matches = glob.iglob(text, recursive=True)  # noqa: PTH207
        return _some(map(Path, matches), f"nothing matches {text}")
    raise SourceError(f"{text}: no such file or folder")


def _some(paths: Iterator[Path], otherwise: str) -> Sequence[Path]:
    found = sorted((path for path in paths if path.is_file()), key=natural)
    if not found:
        raise SourceError(otherwise)
    return found


def _refuse_pictures(paths: Sequence[Path], manifest: Manifest) -> None:
    if not any(path.suffix.lower() in ARRAY_SUFFIXES for path in paths):
        takes = ", ".join(
            f"{s.name} ({s.dtype} {'×'.join('?' if d is None else str(d) for d in s.shape)})" for s in manifest.inputs
        )
        raise SourceError(
            f"{manifest.name!r} takes raw tensors: {takes}; give an .npz or .npy, "
            "or cut the model with --preprocess to feed it pictures"
        )


def _read(path: Path, manifest: Manifest, options: SourceOptions) -> Iterator[Input]:
    """The frames of one file; its error where it has none."""
    if path.suffix.lower() in ARRAY_SUFFIXES:
        yield from _arrays(path, manifest)
        return
    try:
        picture = load_image(path)
    except NarrowsError as error:
        yield Input(str(path), error=error)
        return
    yield _fitted(str(path), picture, manifest, options)


def _fitted(source: str, picture: NDArray[np.uint8], manifest: Manifest, options: SourceOptions) -> Input:
    kept = picture if options.keep_pictures else None
    try:
        return Input(source, arrange(picture, manifest), picture=kept)
    except NarrowsError as error:
        return Input(source, error=error, picture=kept)


def _pipe(pipe: BinaryIO, manifest: Manifest, options: SourceOptions) -> Iterator[Input]:
    if manifest.preprocess is None:
        raise SourceError(f"{manifest.name!r} takes raw tensors, and a pipe gives pictures")
    found: Iterator[NDArray[np.uint8] | NarrowsError]
    found = coded_pictures(pipe) if options.size is None else raw_pictures(pipe, *options.size)
    for number, picture in enumerate(found):
        name = f"{_PIPE}[{number}]"
        if isinstance(picture, NarrowsError):
            yield Input(name, error=picture)
        else:
            yield _fitted(name, picture, manifest, options)


def _arrays(path: Path, manifest: Manifest) -> Iterator[Input]:
    try:
        columns = _columns(path, manifest)
        stacked = _is_stacked(path, columns, manifest)
    except NarrowsError as error:
        yield Input(str(path), error=error)
        return
    for n in range(len(columns[0]) if stacked else 1):
        source = f"{path}[{n}]" if stacked else str(path)
        try:
            yield Input(source, arrange(tuple(c[n] if stacked else c for c in columns), manifest))
        except NarrowsError as error:
            yield Input(source, error=error)


def _columns(path: Path, manifest: Manifest) -> list[Array]:
    """One array per input of the model, out of an `.npy`, or an `.npz` whose keys are the inputs' names.

    The key does not matter where there is one array and one input.
    """
    names = [spec.name for spec in manifest.inputs]
    try:
        if path.suffix.lower() == ".npy":
            held = {"": np.lib.format.open_memmap(path, mode="r")}
        else:
            # np.load would leave a file open that it was given by name and found to be damaged.
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                wanted = names if set(names) <= set(archive.files) else archive.files[:2]
                held = {name: archive[name] for name in wanted}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path}: not a readable array file ({error})") from None
    if set(names) <= set(held):
        return [held[name] for name in names]
    if len(names) == len(held) == 1:
        return list(held.values())
    raise SourceError(f"{path}: the model takes {', '.join(names)}; save an .npz with arrays of these names")


def _is_stacked(path: Path, columns: list[Array], manifest: Manifest) -> bool:
    """Whether the arrays hold many frames along a leading axis, or one.

    Raises:
        SourceError: neither, or not the same number in each.
    """
    extra = {column.ndim - len(spec.shape) for column, spec in zip(columns, manifest.inputs, strict=True)}
    if extra == {0}:
        return False
    if extra != {1} or len({len(column) for column in columns}) != 1:
        found = ", ".join(f"{spec.name} {list(c.shape)}" for spec, c in zip(manifest.inputs, columns, strict=True))
        raise SourceError(f"{path}: {found}; expected one frame, or frames along a leading axis, the same number each")
    return True


def _video(device: int | str, source: str, manifest: Manifest, options: SourceOptions) -> Iterator[Input]:
    try:
        import cv2
    except ImportError:
        raise MissingDependencyError("videos and cameras need OpenCV: pip install 'narrows[video]'") from None
    if isinstance(device, str) and device.startswith(_PIPELINE):
        capture = cv2.VideoCapture(device.removeprefix(_PIPELINE), cv2.CAP_GSTREAMER)
    else:
        capture = cv2.VideoCapture(device)
    if not capture.isOpened():
        capture.release()
        lacking = isinstance(device, str) and device.startswith(_PIPELINE) and not _has_gstreamer()
        hint = "; it was built without GStreamer, as pip's wheels are: use the distribution's" if lacking else ""
        raise SourceError(f"{source}: OpenCV cannot open it{hint}")
    if manifest.preprocess is None:
        capture.release()
        raise SourceError(f"{manifest.name!r} takes raw tensors, and {source} gives pictures")
    return _grab(capture, source, manifest, options)


def _has_gstreamer() -> bool:
    import cv2

    lines = [line for line in cv2.getBuildInformation().splitlines() if "GStreamer" in line]
    return any("YES" in line for line in lines)


def _grab(capture: Any, source: str, manifest: Manifest, options: SourceOptions) -> Iterator[Input]:
    import cv2

    try:
        number = 0
        while True:
            there, picture = capture.read()
            if not there:
                return
            rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
            yield _fitted(f"{source}[{number}]", rgb, manifest, options)
            number += 1
    finally:
        capture.release()
