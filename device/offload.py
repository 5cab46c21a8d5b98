"""The input itself as a frame: a compressed picture, for the whole model on the server."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import MissingDependencyError, UsageError
from ..runtime.frame import CodedTensor, Frame, Mode, whole_frame
from ..runtime.manifest import Manifest
from ..runtime.point import PictureFormat


def check_offloadable(manifest: Manifest, quality: int) -> None:
    """Whether a model's inputs can be sent as a picture.

    Raises:
        UsageError: the model takes no picture, or more than one input; or the quality is none of JPEG's.
    """
    if manifest.preprocess is None or len(manifest.inputs) != 1:
        raise UsageError(f"{manifest.name!r} does not take one picture, so its input cannot be offloaded as one")
    if not 1 <= quality <= 95:
        raise UsageError(f"a picture's quality is between 1 and 95, not {quality}")


def picture_frame(frame_id: int, picture: NDArray[np.uint8], quality: int, form: PictureFormat = "jpeg") -> Frame:
    """A picture, fitted to the model's size already, as a JPEG or a WebP.

    Args:
        frame_id: unique within the stream.
        picture: `uint8` `[height, width, 3]`, RGB.
        quality: 1 to 95, as the format's libraries count it.
        form: the format.

    Raises:
        MissingDependencyError: without Pillow.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingDependencyError("compressing pictures needs Pillow: pip install pillow") from None
    file = io.BytesIO()
    Image.fromarray(picture).save(file, form.upper(), quality=quality)
    return whole_frame(frame_id, Mode.OFFLOAD, [CodedTensor(file.getvalue())])
