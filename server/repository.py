"""Bundles on disk as models that are ready to run.

A repository is one bundle, or a folder whose entries are bundles (folders or `.zip` files) or folders of bundles, one
for each version:

    bundles/resnet56/            a bundle
    bundles/mobilenet/v9/        two versions of one: `v10` is the current one, in natural order
    bundles/mobilenet/v10.zip
"""

from __future__ import annotations

import hashlib
import logging
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..runtime.bundle import Bundle, read_manifest
from ..runtime.cores import available_cores
from ..runtime.errors import BundleError, ModelNotFoundError, NarrowsError
from ..runtime.frame import FrameCodec, Limits, frame_codecs
from ..runtime.halves import Tail, load_arrays
from ..runtime.manifest import MANIFEST, Half, OutputSpec
from ..runtime.session import SessionOptions
from .batcher import BatchOptions
from .cost import BatchCost, best_runs
from .engine import Engine, Prepared, SplitEngine
from .heads import HeadArchive, HeadStore
from .whole import WholeEngine, has_whole

_log = logging.getLogger(__name__)

WHOLE = "whole"
"""What stands for a cut's name where the model is not cut."""


@dataclass(frozen=True)
class Loaded:
    """A graph that is ready to run, and what its runs cost here."""

    name: str
    """The cut's name, and behind a slash that of a further tail; or `WHOLE`."""
    engine: Engine
    cost: BatchCost
    outputs: tuple[OutputSpec, ...]
    """What it may answer with."""
    runs: int = 1
    """Runs at the same time that pay here."""

    @property
    def provider(self) -> str:
        """The execution provider that runs it, or as much of it as it can; others take the rest."""
        return self.engine.providers[0]


@dataclass(frozen=True)
class Model:
    """A bundle whose tails are loaded and have reproduced their golden vectors on this machine."""

    bundle: Bundle
    tails: tuple[dict[str, Loaded], ...]
    """For each cut, in the order of the manifest, its tails by name."""
    whole: Loaded | None
    """The uncut model, where the bundle brings it to the server."""
    head: HeadArchive | None
    """The device's half to hand out, where the bundle has it."""
    path: Path
    """Where in the repository it came from; its name is the version, for people, and says which is the current one."""

    @property
    def name(self) -> str:
        """What a device asks for."""
        return self.bundle.manifest.name

    @property
    def digest(self) -> str:
        """The bundle's identity."""
        return self.bundle.digest

    @property
    def graphs(self) -> Sequence[Loaded]:
        """All of them."""
        return [*(one for cut in self.tails for one in cut.values()), *filter(None, [self.whole])]


@dataclass(frozen=True)
class Loader:
    """How bundles become models."""

    heads: HeadStore
    limits: Limits = field(default_factory=Limits)
    session: SessionOptions = field(default_factory=SessionOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)
    _missed: set[str] = field(default_factory=set, init=False, repr=False)
    """Providers whose absence has been told."""

    def load(self, path: Path) -> Model:
        """Load one bundle, run its golden vectors and measure its batches.

        Raises:
            BundleError: not a whole bundle, over the caps, or a graph that ONNX Runtime refuses.
            GoldenError: this machine does not give the answers that the bundle was made with.
        """
        bundle = _open(path)
        tails = tuple(self._tails(bundle, codec) for codec in frame_codecs(bundle, self.limits))
        whole = self._whole(bundle) if has_whole(bundle.manifest) else None
        head = self.heads.make(bundle) if Half.DEVICE in bundle.halves else None
        model = Model(bundle, tails, whole, head, path)
        best = ", ".join(f"{one.name}: {one.runs} × {one.cost.best_batch} on {one.provider}" for one in model.graphs)
        _log.info("model %s is loaded: bundle %s, best runs × frames: %s", model.name, model.digest, best)
        self._tell_missed(model)
        return model

    def _tell_missed(self, model: Model) -> None:
        """ONNX Runtime goes on without a provider that does not load: slower, often by far, and it says so nowhere."""
        for graph in model.graphs:
            missed = [wanted for wanted in self.session.providers if wanted not in graph.engine.providers]
            for provider in missed:
                if provider not in self._missed:
                    self._missed.add(provider)
                    _log.warning(
                        "%s cannot be used here, and %s runs instead: are its driver and libraries those that this "
                        "ONNX Runtime wants?",
                        provider,
                        graph.provider,
                    )

    def _tails(self, bundle: Bundle, codec: FrameCodec) -> dict[str, Loaded]:
        cut = codec.cut
        golden = load_arrays(bundle, cut.golden_tail)
        sample = Prepared(tuple(golden[f"symbols/0/{i}"] for i in range(len(cut.crossing))), 0)
        tails = {}
        for name in cut.tail_names:
            engine = SplitEngine(codec, Tail(bundle, cut, self.session, name=name))
            further = cut.further_tails.get(name)
            label = cut.name if further is None else f"{cut.name}/{name}"
            outputs = bundle.manifest.outputs if further is None else further.outputs
            tails[name] = self._measured(label, engine, sample, outputs)
        return tails

    def _whole(self, bundle: Bundle) -> Loaded:
        engine = WholeEngine(bundle, self.limits, self.session)
        return self._measured(WHOLE, engine, engine.sample(), bundle.manifest.outputs)

    def _measured(self, name: str, engine: Engine, sample: Prepared | None, outputs: tuple[OutputSpec, ...]) -> Loaded:
        """A graph, and what its runs cost here: alone by size, and at the best size several at a time."""
        cost, runs = BatchCost(self.batch.max_batch, self.batch.max_run_s), 1
        if sample is not None and self.batch.learn_s:
            cost.learn(lambda frames: engine.run([sample] * frames), self.batch.learn_s)
            if not self.batch.runs:
                batch = [sample] * cost.best_batch
                runs = best_runs(lambda: engine.run(batch), len(batch), available_cores(), self.batch.learn_s / 2)
        return Loaded(name, engine, cost, outputs, runs)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a look at the repository found different from the last."""

    added: Sequence[Model]
    removed: Sequence[str]
    """Digests."""


class Repository:
    """What is loaded from a place on disk. Used from one thread at a time."""

    def __init__(self, path: Path, loader: Loader) -> None:
        self._path = path
        self._loader = loader
        self._loaded: dict[Path, tuple[str, str]] = {}
        """Path → mark of its content, digest."""
        self._refused: dict[Path, str] = {}
        """Path → mark of the content that could not be loaded; it is not tried again before it changes."""
        self._names: dict[Path, tuple[str, str]] = {}
        """Path → mark of its content, name of the model in it."""
        self._unloaded: set[str] = set()
        """Names that were unloaded by request; looks leave them alone."""

    def look(self) -> Changes:
        """Load what is new or changed; what cannot be loaded is logged by name and left out.

        A bundle that is replaced by a bad one stays loaded, and one that is gone is reported as removed.
        """
        added: dict[str, Model] = {}
        before = {digest for _, digest in self._loaded.values()}
        found = self._found()
        for path, mark in found.items():
            if self._unloaded and self._name(path, mark) in self._unloaded:
                continue
            if mark in (self._loaded.get(path, ("", ""))[0], self._refused.get(path)):
                continue
            try:
                model = self._loader.load(path)
            except NarrowsError as error:
                self._refused[path] = mark
                _log.error("bundle %s is left out: %s", path.name, error)
                continue
            self._refused.pop(path, None)
            self._loaded[path] = (mark, model.digest)
            added[model.digest] = model
        for path in self._loaded.keys() - found.keys():
            del self._loaded[path]
        after = {digest for _, digest in self._loaded.values()}
        return Changes([model for model in added.values() if model.digest not in before], sorted(before - after))

    def open(self) -> Changes:
        """The first look, which has to find something.

        Raises:
            BundleError: there is no bundle, or none that can be served.
        """
        if is_bundle(self._path):
            self._loaded[self._path] = (_mark(self._path), (model := self._loader.load(self._path)).digest)
            return Changes([model], [])
        if not self._path.is_dir():
            raise BundleError(f"{self._path} is neither a bundle nor a folder of bundles")
        changes = self.look()
        if not changes.added:
            raise BundleError(f"no bundle in {self._path} can be served; cut one into it with narrows cut")
        return changes

    @property
    def unloaded(self) -> Sequence[str]:
        """Names that were unloaded by request, sorted."""
        return sorted(self._unloaded)

    def unload(self, name: str) -> Changes:
        """Let go of all versions of a model, until `load`.

        Raises:
            ModelNotFoundError: nothing of that name is loaded.
        """
        paths = [path for path, (mark, _) in self._loaded.items() if self._name(path, mark) == name]
        if not paths:
            raise ModelNotFoundError(f"no model {name!r} is loaded")
        self._unloaded.add(name)
        return Changes([], sorted({self._loaded.pop(path)[1] for path in paths}))

    def load(self, name: str) -> Changes:
        """Load a model that was unloaded or is new, and what changed of it; as any look, this finds other changes too.

        Raises:
            ModelNotFoundError: the folder has no bundle of that name.
            BundleError: none of its bundles can be loaded.
        """
        paths = [path for path, mark in self._found().items() if self._name(path, mark) == name]
        if not paths:
            raise ModelNotFoundError(f"there is no bundle of model {name!r} to load")
        self._unloaded.discard(name)
        for path in paths:
            self._refused.pop(path, None)
        changes = self.look()
        if not any(path in self._loaded for path in paths):
            raise BundleError(f"no bundle of {name!r} can be loaded; the server's log says why")
        return changes

    def _name(self, path: Path, mark: str) -> str:
        """Name of the model in a bundle; empty where it cannot be read."""
        if self._names.get(path, ("", ""))[0] != mark:
            try:
                self._names[path] = (mark, read_manifest(path).name)
            except BundleError:
                return ""
        return self._names[path][1]

    def _found(self) -> dict[Path, str]:
        paths = [self._path] if is_bundle(self._path) else bundles_in(self._path)
        marks = {}
        for path in paths:
            try:
                marks[path] = _mark(path)
            except OSError:  # replaced at this very moment; the next look will find it
                if path in self._loaded:
                    marks[path] = self._loaded[path][0]
        return marks


def is_bundle(path: Path) -> bool:
    """Whether a path looks like a bundle: a folder with a manifest, or a zip file."""
    return (path / MANIFEST).is_file() if path.is_dir() else path.suffix == ".zip" and path.is_file()


def bundles_in(folder: Path, depth: int = 2) -> list[Path]:
    """The bundles of a folder and of its folders, hidden ones left out, `v9` before `v10`."""
    bundles: list[Path] = []
    if folder.is_dir():
        for path in sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=natural):
            if is_bundle(path):
                bundles.append(path)
            elif depth > 1 and path.is_dir():
                bundles += bundles_in(path, depth - 1)
    return bundles


def natural(path: Path) -> list[tuple[int, str]]:
    """A sort key under which numbers in names count as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _mark(path: Path) -> str:
    """Something that changes when a bundle is replaced: its digest, or a stamp of its archive."""
    if path.is_dir():
        return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    stat = path.stat()
    return f"{stat.st_ino}/{stat.st_size}/{stat.st_mtime_ns}"


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
