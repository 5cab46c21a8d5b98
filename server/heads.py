"""The device's halves as archives, for devices that fetch them from the server."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from ..runtime.bundle import Bundle, sha256_of
from ..runtime.errors import BundleError, UsageError
from ..runtime.manifest import MANIFEST, Half

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
    """Archives in a folder of their own, which goes when the server does.

    They are copies, so that a bundle that is replaced on disk is still handed out whole to devices that ask for it by
    its digest.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="narrows-heads-")

    def make(self, bundle: Bundle) -> HeadArchive:
        """Write the archive of a bundle's head, or find it made already.

        Raises:
            BundleError: the bundle changed on disk meanwhile.
        """
        path = Path(self._folder.name) / f"{bundle.digest}.zip"
        if not path.exists():
            bundle.write_archive(path, Half.DEVICE)
            try:
                _check(path, bundle)
            except BundleError:
                path.unlink()
                raise
        return HeadArchive(path, path.stat().st_size, sha256_of(path))

    def close(self) -> None:
        """Remove the archives."""
        self._folder.cleanup()


def _check(path: Path, bundle: Bundle) -> None:
    """Hold what was copied against the digests that were checked before it was."""
    expected = {name: entry.sha256 for name, entry in bundle.members(Half.DEVICE)} | {MANIFEST: bundle.digest}
    with zipfile.ZipFile(path) as archive:
        for name, digest in expected.items():
            with archive.open(name) as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]  # it has readinto
            if found != digest:
                raise BundleError(f"{bundle.root}: {name} changed while the bundle was loaded; load it again")
