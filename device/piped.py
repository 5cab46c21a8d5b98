"""Pictures out of a pipe: JPEG and PNG files one after another, or raw pixels of a size that was said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import NarrowsError, SourceError
from ..runtime.images import MAX_PIXELS, decode_image

MOST_BYTES = 64 << 20
"""Of one file; what goes on for longer is no picture."""
_CHUNK_BYTES = 1 << 16
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_FORMATS = ("JPEG", "PNG")
_END = 0xD9
_ALONE = {0x01, *range(0xD0, 0xD9)}
"""Markers without a length: TEM, RST0 to RST7, SOI (ITU-T T.81, table B.1)."""

Picture = NDArray[np.uint8]


def raw_pictures(pipe: BinaryIO, width: int, height: int) -> Iterator[Picture]:
    """RGB pixels, three bytes each, row by row: what `ffmpeg -f rawvideo -pix_fmt rgb24 -` writes.

    Yields:
        `uint8` `[height, width, 3]`.

    Raises:
        SourceError: the pipe ends within a picture.
    """
    size = width * height * 3
    while data := _exactly(pipe, size):
        if len(data) < size:
            raise SourceError(f"the pipe ended after {len(data)} of the {size} bytes of a {width}×{height} picture")
        yield np.frombuffer(data, np.uint8).reshape(height, width, 3)


def coded_pictures(pipe: BinaryIO) -> Iterator[Picture | NarrowsError]:
    """JPEG and PNG files, one after another, as `ffmpeg -f image2pipe -` writes them.

    Yields:
        `uint8` `[height, width, 3]`, or what is wrong with one file; after bytes that are no picture, the next that is.
    """
    buffer = _Buffer(pipe)
    while (skipped := buffer.find_start()) is not None:
        if skipped:
            yield SourceError(f"{skipped} bytes in the pipe belong to no JPEG and no PNG")
        if not buffer.has(1):
            return
        try:
            end = _png_end(buffer) if buffer.at(0, len(_PNG)) == _PNG else _jpeg_end(buffer)
        except SourceError as error:
            buffer.take(1)  # and look for the next beginning from there
            yield error
            continue
        try:
            yield decode_image(buffer.take(end), MAX_PIXELS, _FORMATS)
        except NarrowsError as error:
            yield error


class _Buffer:
    """What of a pipe was read and not yet taken."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._data = bytearray()

    def has(self, count: int) -> bool:
        """Whether there are so many bytes; reads on until there are.

        Raises:
            SourceError: more than any picture has.
        """
        if count > MOST_BYTES:
            raise SourceError(f"a file in the pipe goes on for more than {MOST_BYTES} bytes")
        while len(self._data) < count:
            chunk = _some(self._pipe)
            if not chunk:
                return False
            self._data += chunk
        return True

    def at(self, offset: int, count: int) -> bytes:
        """Some bytes, without taking them.

        Raises:
            SourceError: the pipe ends before.
        """
        if not self.has(offset + count):
            raise SourceError("the pipe ended within a picture")
        return bytes(self._data[offset : offset + count])

    def find(self, byte: int, offset: int) -> int:
        """Where a byte comes next.

        Raises:
            SourceError: the pipe ends before.
        """
        while (found := self._data.find(byte, offset)) < 0:
            offset = max(offset, len(self._data))
            self.at(offset, 1)
        return found

    def take(self, count: int) -> bytes:
        """Some bytes, gone from here."""
        taken = bytes(self._data[:count])
        del self._data[:count]
        return taken

    def find_start(self) -> int | None:
        """Take what comes before the next picture's first bytes; how many those were, None at the end of the pipe."""
        skipped = 0
        while self.has(1):
            self.has(len(_PNG))
            starts = [at for sign in (_JPEG, _PNG) if (at := self._data.find(sign)) >= 0]
            if starts:
                return skipped + len(self.take(min(starts)))
            # The last bytes may be a beginning's first ones.
            rest = len(self._data) if not self.has(len(self._data) + 1) else len(self._data) - len(_PNG)
            skipped += len(self.take(max(1, rest)))
        return skipped or None


def _jpeg_end(buffer: _Buffer) -> int:
    """Where a JPEG that begins at 0 ends, marker by marker: a preview in its header has an end of its own."""
    at = 2
    while True:
        at = buffer.find(0xFF, at)
        marker = buffer.at(at, 2)[1]
        if marker == _END:
            return at + 2
        if marker in (0x00, 0xFF) or marker in _ALONE:  # a stuffed byte, a fill byte
            at += 1 if marker == 0xFF else 2
            continue
        # A segment of a length; what follows a start of scan is looked through for the next marker.
        at += 2 + int.from_bytes(buffer.at(at + 2, 2), "big")


def _png_end(buffer: _Buffer) -> int:
    """Where a PNG that begins at 0 ends, chunk by chunk."""
    at = len(_PNG)
    while True:
        head = buffer.at(at, 8)
        at += 12 + int.from_bytes(head[:4], "big")
        if head[4:] == b"IEND":
            buffer.at(at - 1, 1)
            return at


def _some(pipe: BinaryIO) -> bytes:
    # read1: what is there already, and not only once a whole chunk is.
    read = getattr(pipe, "read1", pipe.read)
    return bytes(read(_CHUNK_BYTES))


def _exactly(pipe: BinaryIO, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (chunk := pipe.read(size - len(data))):
        data += chunk
    return bytes(data)
