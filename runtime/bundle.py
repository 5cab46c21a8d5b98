"""The deployable artefact: two graphs, the tables between them, and a manifest that vouches for every byte.

A bundle is a directory, or the same directory as one zip archive:

    manifest.json        what this module's dataclasses say; its sha256 is the bundle's identity
    head.onnx            the device's half; ends in the quantiser
    tail.onnx            the server's half; begins with the dequantiser
    tables.bin           coder tables, integers, where a coder was calibrated
    golden/head.npz      an input and the symbols that the head made of it, at every quality
    golden/tail.npz      those symbols and what the tail answered

Every file belongs to the device's half, to the server's, or to both, and a directory may hold one half alone. Names
of files come out of the manifest only, so that a hostile archive can neither climb out of its folder nor unpack to
more than it declared.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from .errors import BundleError
from .manifest import MANIFEST, CrossingTensor, FileEntry, Half, Manifest, parse

_MAX_MANIFEST_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """Digest of a file's bytes, hexadecimal, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files have been checked.

    bundle = Bundle.open("resnet56", Half.DEVICE)
    bundle.digest, bundle.manifest.cuts[0].name, bundle.file("head.onnx")
    """

    root: Path
    manifest: Manifest
    digest: str
    """sha256 of the manifest's bytes: the identity of both halves."""
    halves: frozenset[Half] = field(default_factory=lambda: frozenset(Half))
    """The halves that were checked to be whole."""

    @classmethod
    def open(cls, path: str | os.PathLike[str], *halves: Half) -> Bundle:
        """Read and check a bundle.

        Args:
            path: a bundle's directory or zip archive.
            halves: the halves that have to be there; both when none is given.

        Raises:
            BundleError: not a bundle, of another schema, a file missing or changed.
        """
        path = Path(path)
        wanted = frozenset(halves or Half)
        if path.is_file():
            return _open_archive(path, wanted)
        text = _manifest_in_folder(path)
        bundle = cls(path, parse(text, path), hashlib.sha256(text).hexdigest(), wanted)
        bundle.verify()
        return bundle

    def verify(self) -> None:
        """Check size and digest of every file of this bundle's halves.

        Raises:
            BundleError: naming the first file that is missing or changed.
        """
        for name, entry in self.members():
            path = self.root / name
            try:
                size = path.stat().st_size
            except OSError:
                raise BundleError(f"{self.root}: {name} is missing; fetch or cut the bundle again") from None
            if size != entry.size or sha256_of(path) != entry.sha256:
                raise BundleError(f"{self.root}: {name} is not the file that was cut; fetch or cut the bundle again")

    def members(self, *halves: Half) -> Iterator[tuple[str, FileEntry]]:
        """Names and entries of the files that belong to `halves` (to this bundle's own when none is given)."""
        wanted = frozenset(halves) or self.halves
        return ((name, entry) for name, entry in self.manifest.files.items() if wanted.intersection(entry.halves))

    def file(self, name: str) -> Path:
        """Path of a file of the manifest."""
        return self.root / name

    def table(self, tensor: CrossingTensor, quality: int, coder: str) -> bytes | None:
        """The table of `coder` for a tensor at a quality, or None where none was calibrated.

        Raises:
            BundleError: the manifest points outside the file.
        """
        ref = tensor.tables[quality] if tensor.tables else None
        if ref is None or ref.coder != coder or self.manifest.tables is None:
            return None
        with self.file(self.manifest.tables).open("rb") as stream:
            stream.seek(ref.offset)
            table = stream.read(min(ref.size, self.manifest.files[self.manifest.tables].size))
        if len(table) != ref.size:
            raise BundleError(f"{self.root}: the table of {tensor.name!r} at quality {quality} ends too soon")
        return table

    def write_archive(self, path: Path, *halves: Half) -> None:
        """Write the manifest and the files of `halves` as one zip archive: the same bytes every time."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name in [MANIFEST, *(name for name, _ in self.members(*halves))]:
                info = zipfile.ZipInfo(name)  # dated 1980, so that equal bundles make equal archives
                with archive.open(info, "w", force_zip64=True) as target, self.file(name).open("rb") as source:
                    shutil.copyfileobj(source, target, _CHUNK_BYTES)


def read_manifest(path: Path) -> Manifest:
    """What a bundle's directory or archive says about itself; no other file of it is looked at.

    Raises:
        BundleError: it is no bundle, or of another schema.
    """
    if not path.is_file():
        return parse(_manifest_in_folder(path), path)
    with _archive(path) as archive:
        return parse(_manifest_in_archive(archive), path)


def _manifest_in_folder(path: Path) -> bytes:
    try:
        with (path / MANIFEST).open("rb") as stream:
            text = stream.read(_MAX_MANIFEST_BYTES + 1)
    except OSError:
        raise BundleError(f"{path} is no bundle: there is no {MANIFEST} in it") from None
    if len(text) > _MAX_MANIFEST_BYTES:
        raise BundleError(f"{path}: {MANIFEST} is larger than {_MAX_MANIFEST_BYTES} bytes")
    return text


def _manifest_in_archive(archive: zipfile.ZipFile) -> bytes:
    if archive.getinfo(MANIFEST).file_size > _MAX_MANIFEST_BYTES:
        raise BundleError(f"{archive.filename}: {MANIFEST} is larger than {_MAX_MANIFEST_BYTES} bytes")
    return archive.read(MANIFEST)


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip archive that may be none, or of anything.

    Raises:
        BundleError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (OSError, KeyError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError) as error:
        raise BundleError(f"{path} is neither a bundle's directory nor a whole zip archive of one ({error})") from None


def _open_archive(path: Path, halves: frozenset[Half]) -> Bundle:
    """Unpack an archive into the user's cache, once, and open it there."""
    with _archive(path) as archive:
        text = _manifest_in_archive(archive)
        manifest = parse(text, path)
        root = cache_folder() / "bundles" / hashlib.sha256(text).hexdigest()
        root.mkdir(parents=True, exist_ok=True)
        wanted = {name: entry for name, entry in manifest.files.items() if halves.intersection(entry.halves)}
        _check_space(root, sum(entry.size for entry in wanted.values()))
        for name, entry in wanted.items():
            _unpack(archive, name, entry, root)
    with _atomically(root / MANIFEST) as temporary:
        temporary.write_bytes(text)
    return Bundle.open(root, *halves)


def _check_space(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise BundleError(f"unpacking needs {needed_bytes} bytes and {folder} has {free}; set NARROWS_CACHE elsewhere")


def _unpack(archive: zipfile.ZipFile, name: str, entry: FileEntry, root: Path) -> None:
    """Write one member, never more bytes of it than the manifest declares."""
    target = root / name
    if target.is_file() and target.stat().st_size == entry.size:
        return  # Bundle.open checks the digest
    if archive.getinfo(name).file_size != entry.size:
        raise BundleError(f"{archive.filename}: {name} is not as large as the manifest says")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _atomically(target) as temporary, archive.open(name) as source, temporary.open("wb") as stream:
        shutil.copyfileobj(source, stream, _CHUNK_BYTES)


@contextmanager
def _atomically(target: Path) -> Iterator[Path]:
    """A temporary path that becomes `target` when the block ends well, and vanishes when it does not."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where Narrows keeps what it can make again: `$NARROWS_CACHE`, or `narrows` under the user's cache folder."""
    given = os.environ.get("NARROWS_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else base / "narrows"


class BundleWriter:
    """Builds a bundle beside its final place, and moves it there when it is whole.

        with BundleWriter(Path("out/resnet56")) as writer:
            onnx.save(head, writer.add("head.onnx", Half.DEVICE))
            ...
            bundle = writer.finish(manifest)

    Leaving the block without `finish` leaves nothing behind. An existing bundle at the target is replaced; any other
    existing folder is refused.
    """

    def __init__(self, target: Path) -> None:
        """Start writing.

        Raises:
            BundleError: something that is not a bundle is at `target` already.
        """
        if target.exists() and not (target / MANIFEST).is_file() and not _is_empty_folder(target):
            raise BundleError(f"{target} exists and is no bundle; choose another name or remove it")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._target = target
        self._files: dict[str, tuple[Half, ...]] = {}
        self.root = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))

    def __enter__(self) -> BundleWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def add(self, name: str, *halves: Half) -> Path:
        """Declare a file of `halves`; the path to write it to. Its bytes are read by `finish`."""
        self._files[name] = halves
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finish(self, manifest: Manifest) -> Bundle:
        """Seal the bundle: digest every file, write the manifest, move the folder into place.

        Args:
            manifest: complete but for `files`, which is filled in here.

        Raises:
            BundleError: the manifest contradicts itself.
        """
        text = msgspec.json.format(msgspec.json.encode(replace(manifest, files=dict(self._entries()))), indent=1)
        parse(text, self._target)
        (self.root / MANIFEST).write_bytes(text)
        self.root.chmod(0o755)  # mkdtemp's own mode would lock a server out that runs as another user
        if self._target.exists():
            # Two renames: for a moment there is no bundle, but never half of one.
            old = Path(tempfile.mkdtemp(dir=self._target.parent, prefix=f".{self._target.name}.old."))
            self._target.replace(old)
            self.root.replace(self._target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            self.root.replace(self._target)
        return Bundle.open(self._target)

    def _entries(self) -> Iterable[tuple[str, FileEntry]]:
        for name, halves in self._files.items():
            path = self.root / name
            yield name, FileEntry(sha256_of(path), path.stat().st_size, halves)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
