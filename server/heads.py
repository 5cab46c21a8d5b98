"""The device's halves as archives, for devices that fetch them from the server."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from ..runtime.bundle import sha256_of
from ..runtime.errors import BundleError, UsageError
from ..runtime.manifest import Half
from .repository import Model

CHUNK_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class HeadArchive:
    """One head half as a zip file: the same bytes every time that it is made, so a transfer can be resumed."""

    path: Path
    size: int
    sha256: str

    async def chunks(self, offset: int) -> AsyncIterator[bytes]:
        """The bytes from `offset` on; at least one chunk, which may be empty.

        Raises:
            UsageError: an offset behind the end.
        """
        if offset > self.size:
            raise UsageError(f"offset {offset} is behind the archive's {self.size} bytes; fetch it from the start")
        with self.path.open("rb") as stream:
            stream.seek(offset)
            while True:
                chunk = await asyncio.to_thread(stream.read, CHUNK_BYTES)
                yield chunk
                offset += len(chunk)
                if not chunk or offset >= self.size:
                    return


class HeadStore:
    """Makes each archive once, when it is first asked for, in a folder that goes when the server does."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="narrows-heads-")
        self._archives: dict[str, HeadArchive] = {}
        self._making = asyncio.Lock()

    async def get(self, model: Model) -> HeadArchive:
        """The archive of a model's head.

        Raises:
            BundleError: the server holds its own half alone.
        """
        if not model.has_head:
            raise BundleError(f"the server has no head of {model.name!r}; copy the device's half from where it was cut")
        async with self._making:
            if model.digest not in self._archives:
                self._archives[model.digest] = await asyncio.to_thread(self._make, model)
        return self._archives[model.digest]

    def close(self) -> None:
        """Remove the archives."""
        self._folder.cleanup()

    def _make(self, model: Model) -> HeadArchive:
        path = Path(self._folder.name) / f"{model.digest}.zip"
        model.bundle.write_archive(path, Half.DEVICE)
        return HeadArchive(path, path.stat().st_size, sha256_of(path))
