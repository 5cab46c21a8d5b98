"""From bundles to a profile. Needs no torch and no ONNX, so that it runs on a board."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..device.energy import find_meter
from ..device.providers import choose
from ..planner.profile import SCHEMA, CutProfile, Power, Profile, Whole
from ..runtime.bundle import Bundle
from ..runtime.errors import BundleError, UsageError
from ..runtime.manifest import Half
from .cuts import CutMeter
from .frames import read_frames
from .machine import Watch, machine
from .memory import peak_memory_bytes
from .options import ProfileOptions, Progress, quietly
from .power import energy_of, idle_w
from .serving import with_server
from .stopwatch import repeat
from .whole import WholeMeter

_AT_ONCE = 2
"""Processes whose memory is measured at the same time: a board has little of it."""


def open_bundle(path: str | os.PathLike[str], *, on_device: bool = False) -> Bundle:
    """A bundle with both halves, or with the device's alone where the server's is not there or not wanted.

    Raises:
        BundleError: neither is whole.
    """
    if not on_device:
        try:
            return Bundle.open(path)
        except BundleError:
            pass  # perhaps the device's half alone; if that is not whole either, its error is the one to show
    return Bundle.open(path, Half.DEVICE)


def profile_bundles(
    bundles: Sequence[Bundle], options: ProfileOptions | None = None, progress: Progress = quietly
) -> Profile:
    """Measure every cut of some bundles of one model on this machine.

    Args:
        bundles: one, or several of the same model.
        options: how.
        progress: told of every step.

    Raises:
        UsageError: bundles of several models.
        BundleError: this machine does not reproduce a bundle.
        SourceError: no readable pictures.
        LinkError: the server given does not answer.
    """
    options = options or ProfileOptions()
    digests = {model_digest(bundle) for bundle in bundles}
    if len(digests) != 1:
        raise UsageError(f"a profile is of one model; {len(bundles)} bundles of {len(digests)} models were given")
    return _Session(bundles, options, progress).run(digests.pop())


def model_digest(bundle: Bundle) -> str:
    """Of the uncut model, or the bundle's own where it does not say."""
    return bundle.manifest.model or bundle.digest


class _Session:
    """One profiling."""

    def __init__(self, bundles: Sequence[Bundle], options: ProfileOptions, tell: Progress) -> None:
        if options.try_providers:
            bundle = bundles[0]
            options = replace(options, session=choose(bundle, bundle.manifest.cuts[0], options.session))
        self.bundles = bundles
        self.options = options
        self.tell = tell
        self.frames, self.own = read_frames(bundles[0], options.images, options.frames)
        self.notes: list[str] = []
        self.meter = find_meter()
        self.watts: list[float] = []
        self.graphs: dict[str, Path] = {}
        """Of the heads, by cut."""
        carrier = next((bundle for bundle in bundles if _carries_whole(bundle)), None)
        self.whole = WholeMeter(carrier, options, self.frames) if carrier is not None else None

    def run(self, digest: str) -> Profile:
        """Measure everything."""
        bundle, watch = self.bundles[0], self._watch()
        idle = idle_w(self.meter) if self.meter is not None else 0.0
        if self.whole is not None:
            self.whole.measure()
        cuts = list(self._cuts(watch))
        encodings = tuple(self.whole.encodings(self.tell, own=self.own)) if self.whole is not None else ()
        whole = Whole() if self.whole is None else self.whole.profile(energy_j=self._energy(self.whole.once_ms))
        if whole.accuracy is None:
            whole = replace(whole, accuracy=bundle.manifest.accuracy)
        on_device, on_server = self._carriers()
        watch.check()
        if not self.own:
            self.notes.append("no pictures were given: sizes and agreement are those of the bundle's calibration data")
        if self.whole is None:
            self.notes.append("no bundle carries the whole model: `local` and `offload` are not measured")
        mean_w = sum(self.watts) / len(self.watts) if self.watts else 0.0
        profile = Profile(
            schema=SCHEMA,
            model=bundle.manifest.name,
            digest=digest,
            machine=machine(self.options.name, self.options.session),
            frames=len(self.frames) if self.own else 0,
            cuts=tuple(cuts),
            whole=whole if on_device else Whole(accuracy=whole.accuracy),
            server_whole=whole if on_server else Whole(),
            encodings=encodings,
            power=Power(mean_w, idle, self.meter.name) if self.meter is not None and self.watts else None,
            notes=(*watch.notes, *self.notes),
        )
        return with_server(self._memory(profile), self.bundles, self.frames, self.options, self.tell)

    def _carriers(self) -> tuple[bool, bool]:
        """Whether device and server get the whole model by this bundle: what they lack is no operating point."""
        if self.whole is None:
            return False, False
        manifest = self.whole.bundle.manifest
        halves = manifest.files[str(manifest.local)].halves
        return Half.DEVICE in halves, Half.SERVER in halves and not self.options.on_device

    def _watch(self) -> Watch:
        """What is run again and again to see whether the machine keeps its speed."""
        if self.whole is not None:
            return Watch(self.whole.once_ms)
        bundle, frame = self.bundles[0], self.frames[0]
        meter = CutMeter(bundle, 0, replace(self.options, on_device=True, server=None), self.frames)
        return Watch(lambda: repeat(lambda: meter.run_head(frame, 0), self.options.steady, 0.0).ms)

    def _cuts(self, watch: Watch) -> Iterator[CutProfile]:
        places = [(bundle, index) for bundle in self.bundles for index in range(len(bundle.manifest.cuts))]
        seen: set[str] = set()
        for done, (bundle, index) in enumerate(places):
            watch.check()
            meter = CutMeter(bundle, index, self.options, self.frames)
            name = meter.head.cut.name
            if name in seen:
                self.notes.append(f"cut {name} is in several bundles; the first counts")
                continue
            seen.add(name)
            loose = meter.measure(self.whole.references if self.whole is not None else ())
            if loose:
                self.notes.append(f"cut {name}: {len(loose)} figures have not settled, {loose[0]} among them")
            self.graphs[name] = bundle.file(meter.head.cut.head)
            yield meter.profile(own_sizes=self.own, energy_j=self._energy(partial(meter.run_head, self.frames[0], 0)))
            watch.check()
            self.tell("measuring cuts", done + 1, len(places))

    def _memory(self, profile: Profile) -> Profile:
        """The profile with the memory that its graphs take."""
        if not self.options.memory:
            return profile
        names, graphs = [None, *self.graphs], [self._local, *self.graphs.values()]
        measure = partial(peak_memory_bytes, options=self.options.session)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = dict(zip(names, pool.map(lambda graph: graph and measure(graph), graphs), strict=True))
        return replace(
            profile,
            cuts=tuple(replace(cut, peak_memory_bytes=found[cut.name]) for cut in profile.cuts),
            whole=replace(profile.whole, peak_memory_bytes=found[None]),
        )

    @property
    def _local(self) -> Path | None:
        """The whole model's graph, where it is here."""
        if self.whole is None:
            return None
        bundle = self.whole.bundle
        return bundle.file(str(bundle.manifest.local))

    def _energy(self, run: Callable[[], object]) -> float | None:
        if self.meter is None:
            return None
        joules, watts = energy_of(self.meter, run)
        self.watts.append(watts)
        return joules


def _carries_whole(bundle: Bundle) -> bool:
    """Whether a bundle has the whole model for one of the halves that are here."""
    local = bundle.manifest.local
    return local is not None and bool(bundle.halves.intersection(bundle.manifest.files[local].halves))
