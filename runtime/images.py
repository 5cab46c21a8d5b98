"""Pictures as arrays: read with limits, and fitted to the size that a head takes."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from .errors import MissingDependencyError, SourceError
from .manifest import Preprocess

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"})
WIRE_FORMATS = ("JPEG", "PNG", "WEBP")
"""What a server decodes."""
MAX_PIXELS = 64_000_000
"""A picture that says it has more is refused before its pixels are decoded."""


def load_image(path: Path) -> NDArray[np.uint8]:
    """Read a picture.

    Returns:
        `uint8` `[height, width, 3]`, RGB, turned as its EXIF says.

    Raises:
        SourceError: no such file, not a picture, damaged, or of more than `MAX_PIXELS` pixels.
    """
    return _read(path, str(path), MAX_PIXELS, None)


def decode_image(data: bytes, max_pixels: int, formats: tuple[str, ...] = WIRE_FORMATS) -> NDArray[np.uint8]:
    """Decode a stranger's picture.

    Args:
        data: a picture's file.
        max_pixels: above it, nothing is decoded.
        formats: Pillow's names of the formats that are tried; every one more is a parser more that strangers reach.

    Returns:
        `uint8` `[height, width, 3]`, RGB, turned as its EXIF says.

    Raises:
        SourceError: not a picture of these formats, damaged, or too many pixels.
    """
    return _read(io.BytesIO(data), "the picture", max_pixels, formats)


def _read(file: Path | io.BytesIO, name: str, max_pixels: int, formats: tuple[str, ...] | None) -> NDArray[np.uint8]:
    image_module, ops = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what the next lines check
            with image_module.open(file, formats=formats) as image:
                if image.width * image.height > max_pixels:
                    raise SourceError(f"{name}: {image.width}×{image.height} pixels are more than {max_pixels}")
                return np.asarray(ops.exif_transpose(image).convert("RGB"))
    except SourceError:
        raise
    except FileNotFoundError:
        raise SourceError(f"{name}: no such file") from None
    # Pillow's decoders raise these, and SyntaxError, for files that are damaged in their own ways.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, image_module.DecompressionBombError) as error:
        raise SourceError(f"{name}: not a readable picture ({error})") from None


def fit(picture: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    """Bring a picture to the size that the head takes; one that has it already passes untouched.

    Args:
        picture: `uint8` `[height, width, 3]`, RGB.
        preprocess: size, and what to do with another aspect.

    Returns:
        `uint8` `[preprocess.height, preprocess.width, 3]`.

    Raises:
        SourceError: not three channels of bytes.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise SourceError(f"a picture is uint8 [height, width, 3]; {picture.dtype} {list(picture.shape)} came")
    height, width = preprocess.height, preprocess.width
    if picture.shape[:2] == (height, width):
        return picture
    if preprocess.fit == "stretch":
        return _resize(picture, height, width)
    if preprocess.fit == "pad":
        return _pad(picture, preprocess)
    return _crop(picture, preprocess)


def _crop(picture: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    height, width = preprocess.height, preprocess.width
    ratio = max(height / picture.shape[0], width / picture.shape[1]) / preprocess.crop
    scaled = _resize(picture, max(height, round(picture.shape[0] * ratio)), max(width, round(picture.shape[1] * ratio)))
    top, left = (scaled.shape[0] - height) // 2, (scaled.shape[1] - width) // 2
    return np.ascontiguousarray(scaled[top : top + height, left : left + width])


def _pad(picture: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    height, width = preprocess.height, preprocess.width
    ratio = min(height / picture.shape[0], width / picture.shape[1])
    inner = (max(1, min(height, round(picture.shape[0] * ratio))), max(1, min(width, round(picture.shape[1] * ratio))))
    canvas = np.full((height, width, 3), preprocess.fill, np.uint8)
    canvas[: inner[0], : inner[1]] = _resize(picture, *inner)
    return canvas


def _resize(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if picture.shape[:2] == (height, width):
        return picture
    image_module, _ = _pillow()
    resized = image_module.fromarray(picture).resize((width, height), image_module.Resampling.BILINEAR)
    return np.asarray(resized)


def _pillow() -> tuple[ModuleType, ModuleType]:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise MissingDependencyError("reading pictures needs Pillow: pip install pillow") from None
    return Image, ImageOps
