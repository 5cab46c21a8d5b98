"""A folder of bundles as models that are ready to run."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runtime.bundle import Bundle
from ..runtime.errors import BundleError, BundleMismatchError, ModelNotFoundError, NarrowsError
from ..runtime.frame import Limits, frame_codecs
from ..runtime.halves import Tail
from ..runtime.manifest import MANIFEST, Half
from ..runtime.session import SessionOptions
from .engine import SplitEngine

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A bundle whose tails are loaded and have reproduced their golden vectors on this machine."""

    bundle: Bundle
    tails: tuple[SplitEngine, ...]
    """One for each cut, in the order of the manifest."""

    @property
    def name(self) -> str:
        """What a device asks for."""
        return self.bundle.manifest.name

    @property
    def digest(self) -> str:
        """The bundle's identity."""
        return self.bundle.digest

    @property
    def has_head(self) -> bool:
        """Whether devices can fetch their half here."""
        return Half.DEVICE in self.bundle.halves


class Repository:
    """The models of a server: for each name, one that is current, and perhaps others by digest."""

    def __init__(self, models: Sequence[Model]) -> None:
        """Later models of a name are current rather than earlier ones."""
        self._models = {model.digest: model for model in models}
        self._current = {model.name: model for model in models}

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)

    def current(self) -> Sequence[Model]:
        """Each name's current model, sorted by name."""
        return [self._current[name] for name in sorted(self._current)]

    def find(self, name: str, digest: str = "") -> Model:
        """The model of a name, at a digest or the current one.

        Raises:
            ModelNotFoundError: no model of that name; the names that there are stand in the text.
            BundleMismatchError: the name is here and the digest is not; both digests stand in the text.
        """
        current = self._current.get(name)
        if current is None:
            raise ModelNotFoundError(f"no model {name!r} here; there are {', '.join(sorted(self._current))}")
        model = self._models.get(digest, None if digest else current)
        if model is None or model.name != name:
            raise BundleMismatchError(
                f"the device holds bundle {digest} of {name!r}, the server {current.digest}; "
                "fetch the head again (narrows pull), or serve that bundle"
            )
        return model


def load_repository(path: Path, limits: Limits, session: SessionOptions) -> Repository:
    """Load every bundle of a folder, in the natural order of their names.

    Args:
        path: a folder whose sub-folders and `.zip` files are bundles, or one bundle.
        limits: caps of the frames.
        session: how tails are run.

    Raises:
        BundleError: there is no bundle, or none that can be served. One bad bundle among good ones is logged by name
            and left out.
    """
    if is_bundle(path):
        return Repository([load_model(path, limits, session)])
    if not path.is_dir():
        raise BundleError(f"{path} is neither a bundle nor a folder of bundles")
    models = []
    for candidate in candidates(path):
        try:
            models.append(load_model(candidate, limits, session))
        except NarrowsError as error:
            _log.error("bundle %s is left out: %s", candidate.name, error)
    if not models:
        raise BundleError(f"no bundle in {path} can be served; cut one into it with narrows cut")
    return Repository(models)


def load_model(path: Path, limits: Limits, session: SessionOptions) -> Model:
    """Load one bundle and run its golden vectors.

    Raises:
        BundleError: not a whole bundle, over the caps, or a graph that ONNX Runtime refuses.
        GoldenError: this machine does not give the answers that the bundle was made with.
    """
    bundle = _open(path)
    tails = [
        SplitEngine(codec, Tail(bundle, cut, session))
        for codec, cut in zip(frame_codecs(bundle, limits), bundle.manifest.cuts, strict=True)
    ]
    _log.info("model %s is loaded: bundle %s, %d cuts", bundle.manifest.name, bundle.digest, len(tails))
    return Model(bundle, tuple(tails))


def is_bundle(path: Path) -> bool:
    """Whether a path looks like a bundle: a folder with a manifest, or a zip file."""
    return (path / MANIFEST).is_file() if path.is_dir() else path.suffix == ".zip" and path.is_file()


def candidates(folder: Path) -> list[Path]:
    """The bundles of a folder, hidden ones left out, `v9` before `v10`."""
    return sorted((p for p in folder.iterdir() if not p.name.startswith(".") and is_bundle(p)), key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _open(path: Path) -> Bundle:
    """Open a bundle with both halves where the device's is there too; a damaged head is an error, a missing one not."""
    bundle = Bundle.open(path, Half.SERVER)
    device = {name for name, _ in bundle.members(Half.DEVICE)} - {name for name, _ in bundle.members(Half.SERVER)}
    if path.is_dir():
        found = any(bundle.file(name).exists() for name in device)
    else:
        with zipfile.ZipFile(path) as archive:
            found = not device.isdisjoint(archive.namelist())
    return Bundle.open(path) if found else bundle
