"""A bundle's device half from a server: fetched, verified, tried on this machine, and put in its place at once.

    bundle = pull("server:8470", "resnet56", Path("/var/lib/narrows/resnet56"))

The target is a symbolic link to a folder beside it, named after the bundle's digest (`.resnet56.versions/…`). The link
is replaced in one step; what it pointed to before stays, for `roll_back`, and what is older goes. A bundle whose golden
vectors this machine does not reproduce never gets there. A transfer that broke off goes on where it ended, in this
process or the next.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from ..protos import split_pb2 as pb
from ..protos.split_pb2_grpc import SplitInferenceStub
from ..runtime.bundle import Bundle, cache_folder, sha256_of
from ..runtime.early_exit import EarlyExit
from ..runtime.errors import (
    TRANSIENT,
    BundleError,
    LinkError,
    ModelNotFoundError,
    NarrowsError,
    UsageError,
)
from ..runtime.halves import Final, Head
from ..runtime.link import LinkOptions, open_channel
from ..runtime.manifest import Half
from ..runtime.session import SessionOptions
from .backoff import Backoff
from .conversation import APPLICATION, reason
from .local import LocalModel

log = logging.getLogger(__name__)

_PREVIOUS = ".previous"
_ASK_S = 20.0
"""For what a server has; one that is not there says so at once."""


@dataclass(frozen=True, slots=True)
class PullOptions:
    """How to fetch."""

    patience_s: float = 60.0
    """How long to go on trying without a single new byte."""
    chunk_s: float = 20.0
    """How long to wait for a chunk before the transfer is begun anew where it ended."""
    max_bytes: int = 4 << 30
    """A larger archive is refused before anything is written."""
    session: SessionOptions = field(default_factory=SessionOptions)
    """For the trial on this machine."""
    link: LinkOptions = field(default_factory=LinkOptions)

    def __post_init__(self) -> None:
        if min(self.patience_s, self.chunk_s, self.max_bytes) <= 0:
            raise UsageError("patience and sizes must be positive")


def pull(server: str, model: str, target: Path, options: PullOptions | None = None) -> Bundle:
    """Bring `target` to the bundle that a server has of a model now.

    Args:
        server: "host:port".
        model: its name there.
        target: a path where nothing is, or a link that an earlier pull made.
        options: how to fetch.

    Returns:
        The bundle, opened at its place. The same as before where the server has nothing new.

    Raises:
        LinkError: no new byte within the patience; what has come is kept for the next try.
        ModelNotFoundError: the server has no such model.
        BundleError: the archive is damaged, too large, or something else is at the target.
        GoldenError: this machine does not reproduce the new bundle; the target is as it was.
    """
    options = options or PullOptions()
    if target.exists() and not target.is_symlink():
        raise BundleError(f"{target} is no link that a pull has made; choose another path, or move it away")
    with _stub(server, options) as stub:
        digest = newest(stub, server, model)
        if target.exists() and (held := Bundle.open(target.resolve(), Half.DEVICE)).digest == digest:
            return held
        archive = _fetch(stub, server, model, digest, options)
    bundle = Bundle.open(archive, Half.DEVICE)
    archive.unlink()
    if bundle.digest != digest:
        raise BundleError(f"{server} sent bundle {bundle.digest[:12]} for {digest[:12]}")
    try_here(bundle, options.session)
    place(bundle, target)
    # By its own place: the link will point elsewhere one day, while this bundle is still at work.
    return Bundle.open(target.resolve(), Half.DEVICE)


def newest_digest(server: str, model: str, options: PullOptions | None = None) -> str:
    """Digest of the bundle that a server has of a model now.

    Raises:
        ModelNotFoundError: it has none.
        LinkError: no answer.
    """
    with _stub(server, options or PullOptions()) as stub:
        return newest(stub, server, model)


def try_here(bundle: Bundle, session: SessionOptions | None = None) -> None:
    """Run every graph of the device's half on the golden vectors.

    Raises:
        GoldenError: this machine does not reproduce them.
        BundleError: ONNX Runtime refuses a graph.
    """
    for cut in bundle.manifest.cuts:
        Head(bundle, cut, session)
        if cut.final is not None:
            Final(bundle, cut, session)
        if cut.exit is not None:
            EarlyExit(bundle, cut, session)
    if bundle.manifest.local is not None:
        LocalModel(bundle, session)


def place(bundle: Bundle, target: Path) -> None:
    """Let the link `target` point to a bundle, in one step; what it pointed to is kept as `target.previous`.

    The bundle's files come to a folder beside the target, so that nobody who empties a cache takes them away.
    """
    versions = target.with_name(f".{target.name}.versions")
    home = versions / bundle.digest
    if not home.is_dir():
        versions.mkdir(parents=True, exist_ok=True)
        arriving = versions / f".{bundle.digest}.{os.getpid()}"
        shutil.rmtree(arriving, ignore_errors=True)
        # Links where that can be: the cache's own copy takes no room of its own, and may go at any time.
        shutil.copytree(bundle.root, arriving, copy_function=_link_or_copy)
        arriving.replace(home)
    before = target.resolve() if target.is_symlink() else None
    kept = target.with_name(target.name + _PREVIOUS)
    if before is not None and before != home.resolve():
        _link(before, kept)
    _link(home, target)
    used = {link.resolve() for link in (target, kept) if link.is_symlink()}
    for version in versions.iterdir():
        if version.resolve() not in used:
            shutil.rmtree(version, ignore_errors=True)


def roll_back(target: Path) -> Bundle:
    """Let the link point to the bundle before; rolling back twice comes to where it was.

    Raises:
        BundleError: there is none before.
    """
    kept = target.with_name(target.name + _PREVIOUS)
    if not kept.is_symlink():
        raise BundleError(f"there is nothing to roll {target} back to")
    place(Bundle.open(kept.resolve(), Half.DEVICE), target)
    return Bundle.open(target.resolve(), Half.DEVICE)


def newest(stub: SplitInferenceStub, server: str, model: str) -> str:
    """As `newest_digest`, over a connection that is there."""
    with _told(server):
        request, metadata = pb.DescribeRequest(model=model), [(APPLICATION, model)]
        described = stub.Describe(request, timeout=_ASK_S, metadata=metadata)
    for one in described.models:
        if one.name == model:
            return str(one.bundle)
    raise ModelNotFoundError(f"{server} has no model {model!r}")


def _fetch(stub: SplitInferenceStub, server: str, model: str, digest: str, options: PullOptions) -> Path:
    """The archive, whole and of the right sha256."""
    part = cache_folder() / "downloads" / f"{digest}.zip.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    backoff, last_byte = Backoff(0.1, 5.0), time.monotonic()
    while True:
        before = _size(part)
        try:
            sha256 = _append(
                stub, server, pb.FetchHeadRequest(model=model, bundle=digest, offset=before), part, options
            )
            break
        except TRANSIENT as error:
            if _size(part) > before:
                last_byte = time.monotonic()
                backoff.reset()
            elif time.monotonic() - last_byte > options.patience_s:
                raise
            log.info("the transfer broke off at byte %d: %s", _size(part), error)
            time.sleep(backoff.next_s())
    if sha256_of(part) != sha256:
        part.unlink()
        raise BundleError(f"what came from {server} is not what it said it would send; pull again")
    whole = part.with_suffix("")
    part.replace(whole)
    return whole


def _append(
    stub: SplitInferenceStub, server: str, request: pb.FetchHeadRequest, part: Path, options: PullOptions
) -> str:
    """Write the chunks from the offset on; the sha256 that the whole is to have."""
    with _told(server), part.open("ab") as stream:
        # No deadline for the whole: a slow link is no fault. The watch is on the single chunk.
        chunks = stub.FetchHead(request, wait_for_ready=True, metadata=[(APPLICATION, request.model)])
        watch = _Watch(chunks, options.chunk_s)
        try:
            # A proxy may say an error in the wake of an empty message.
            first = next(chunk for chunk in chunks if chunk.ByteSize())
            _check(first, request, server, options.max_bytes, part.parent)
            total, sha256, size = first.total_bytes, str(first.sha256), int(request.offset)
            chunk: pb.FetchHeadChunk | None = first
            while chunk is not None:
                watch.alive()
                size += len(chunk.data)
                if size > total:
                    raise BundleError(f"{server} sends more than the {total} bytes that it announced")
                stream.write(chunk.data)
                chunk = next(chunks, None)
            if size < total:
                raise LinkError(f"{server} ended the transfer at byte {size} of {total}")
            return sha256
        finally:
            watch.end()
            chunks.cancel()


def _check(first: pb.FetchHeadChunk, request: pb.FetchHeadRequest, server: str, most: int, folder: Path) -> None:
    if first.bundle != request.bundle:
        raise BundleError(f"{server} sends bundle {first.bundle[:12]!r} where {request.bundle[:12]} was asked for")
    if first.total_bytes > most:
        raise BundleError(f"{server} announces {first.total_bytes} bytes; at most {most} are taken")
    if first.total_bytes - request.offset > (free := shutil.disk_usage(folder).free):
        raise BundleError(f"{first.total_bytes} bytes are to come and {folder} has {free}; set NARROWS_CACHE elsewhere")


class _Watch:
    """Cancels a call that has been silent for too long."""

    def __init__(self, call: grpc.Call, silence_s: float) -> None:
        self._call = call
        self._silence_s = silence_s
        self._beat = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._look, name="narrows-pull", daemon=True)
        self._thread.start()

    def alive(self) -> None:
        """Something came."""
        self._beat.set()

    def end(self) -> None:
        """No more watching."""
        self._over = True
        self._beat.set()
        self._thread.join()

    def _look(self) -> None:
        while self._beat.wait(self._silence_s) and not self._over:
            self._beat.clear()
        if not self._over:
            self._call.cancel()  # type: ignore[no-untyped-call]


@contextmanager
def _stub(server: str, options: PullOptions) -> Iterator[SplitInferenceStub]:
    with open_channel(server, options.link) as channel:
        yield SplitInferenceStub(channel)  # type: ignore[no-untyped-call]


@contextmanager
def _told(server: str) -> Iterator[None]:
    """A call's failure as an error of ours."""
    try:
        yield
    except grpc.RpcError as error:
        raised: NarrowsError = reason(error, server)
        raise raised from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _link(to: Path, at: Path) -> None:
    fresh = at.with_name(f".{at.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    # Relative, so that the folder around them can be moved.
    fresh.symlink_to(os.path.relpath(to, at.parent))
    fresh.replace(at)
