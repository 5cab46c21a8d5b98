"""A video of the frames with what was said of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import MissingDependencyError, UsageError
from .outcome import Outcome

_CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v"}
_MARGIN = 8


class AnnotatedVideo:
    """Writes every outcome's picture with its answer, as they come; closed on leaving."""

    def __init__(self, path: Path, frames_per_s: float = 25.0) -> None:
        """Prepare; the file begins with the first picture, and has its size.

        Args:
            path: `.mp4`, `.mkv` or `.avi`.
            frames_per_s: of the video.

        Raises:
            MissingDependencyError: without OpenCV.
            UsageError: another kind of file, or a rate that is none.
        """
        try:
            import cv2
        except ImportError:
            raise MissingDependencyError("an annotated video needs OpenCV: pip install 'narrows[video]'") from None
        if path.suffix.lower() not in _CODECS or frames_per_s <= 0:
            raise UsageError(f"an annotated video is .mp4, .mkv or .avi, at more than 0 frames a second, not {path}")
        self._cv2: Any = cv2
        self._path = path
        self._rate = frames_per_s
        self._writer: Any = None
        self._size = (0, 0)
        self.frames = 0

    def __enter__(self) -> AnnotatedVideo:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._writer is not None:
            self._writer.release()

    def add(self, outcome: Outcome) -> None:
        """Write one frame; nothing where its source kept no picture.

        Raises:
            UsageError: the file cannot be written.
        """
        if outcome.picture is None:
            return
        height, width = outcome.picture.shape[:2]
        if self._writer is None:
            self._begin(width, height)
        frame = self._cv2.cvtColor(outcome.picture, self._cv2.COLOR_RGB2BGR)
        if (width, height) != self._size:
            frame = self._cv2.resize(frame, self._size)
        self._writer.write(self._draw(frame, captions(outcome)))
        self.frames += 1

    def _begin(self, width: int, height: int) -> None:
        # Video codecs want even sides.
        self._size = (width + width % 2, height + height % 2)
        codec = self._cv2.VideoWriter_fourcc(*_CODECS[self._path.suffix.lower()])
        self._writer = self._cv2.VideoWriter(str(self._path), codec, self._rate, self._size)
        if not self._writer.isOpened():
            raise UsageError(f"{self._path} cannot be written; is the folder there, and has OpenCV this codec?")

    def _draw(self, frame: NDArray[np.uint8], lines: list[str]) -> NDArray[np.uint8]:
        cv2 = self._cv2
        scale = max(0.4, self._size[1] / 720)
        thick = max(1, round(2 * scale))
        y = _MARGIN
        for line in lines:
            (width, height), below = cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
            y += height
            corner = (_MARGIN + width, y + below)
            cv2.rectangle(frame, (_MARGIN // 2, y - height - _MARGIN // 2), corner, (0, 0, 0), cv2.FILLED)
            cv2.putText(frame, line, (_MARGIN, y), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), thick, cv2.LINE_AA)
            y += below + _MARGIN // 2
        return frame


def captions(outcome: Outcome) -> list[str]:
    """What is written over a frame; ASCII, since OpenCV's letters are."""
    if outcome.error is not None:
        said = [outcome.outcome]
    else:
        best = [f"{one.label or one.index} {one.score:.2f}" for one in outcome.top[:3]]
        said = [*(best or [", ".join(outcome.outputs)])]
    how = f"{outcome.provenance or 'no answer'}, {outcome.point}, {outcome.ms.get('total', 0):.0f} ms"
    if outcome.wire_bytes:
        how += f", {outcome.wire_bytes} bytes"
    return [line.encode("ascii", "replace").decode() for line in (*said, how)]
