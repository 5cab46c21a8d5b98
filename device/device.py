"""A device: the head here, the tail on a server, an outcome for every frame."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from ..runtime.answer import Wanted
from ..runtime.bundle import Bundle
from ..runtime.errors import UsageError
from ..runtime.frame import FrameCodec
from ..runtime.halves import Head
from ..runtime.link import LinkOptions
from ..runtime.manifest import Half
from ..runtime.session import SessionOptions
from .conversation import Greeting
from .estimates import Duration
from .inputs import Value, as_input
from .local import LocalModel
from .outcome import Outcome, Point, Tally
from .pipeline import Journey, Pipeline
from .planner import Planner, PowerModel
from .policies import Policy, Static
from .predictions import Reader
from .sources import open_source
from .stages import CutParts, Stages
from .uplink import Counters, Uplink, UplinkOptions


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """How a device works."""

    cut: str | None = None
    """Name of the bundle's cut to split at; its first where none is given."""
    quality: int | None = None
    """Quality of frames that name none; the cut's best where none is given."""
    wanted: Wanted = field(default_factory=Wanted)
    """Full output tensors, or the best classes alone."""
    policy: Policy = field(default_factory=Static)
    """Chooses each frame's operating point."""
    deadline_ms: float | None = None
    """When an answer is due, from the input being there. Where the bundle carries a whole model for the device, that
    answers what the server does not in time; otherwise the frame ends in an error then."""
    fallback: bool = True
    """Let the bundle's whole model, where there is one, answer what no server does."""
    timeout_s: float = 10.0
    """A frame that has no answer by then ends in an error, or, with a fallback, on the device."""
    stall_s: float | None = None
    """Silence of a server that owes an answer, after which the connection is made anew and what it owes is sent again;
    a fifth of `timeout_s` where none is given."""
    window: int = 8
    """Frames between their input and the caller, at most."""
    session: SessionOptions = field(default_factory=SessionOptions)
    link: LinkOptions = field(default_factory=LinkOptions)
    power: PowerModel = field(default_factory=PowerModel)
    """What the policy reckons energy with."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UsageError(f"a window of {self.window} frames is none; give 1 or more")
        if self.timeout_s <= 0 or (self.stall_s is not None and self.stall_s <= 0):
            raise UsageError("timeouts must be positive")
        if self.deadline_ms is not None and self.deadline_ms <= 0:
            raise UsageError(f"a deadline of {self.deadline_ms} ms is over before it begins")


class Device:
    """Runs the head of a bundle here and its tail on a server.

        with Device("bundles/resnet56", "server:8470") as device:
            for outcome in device.stream(frames):
                print(outcome.top)

    Safe to use from several threads: each may have a stream of its own over the one connection.
    """

    def __init__(
        self, bundle: Bundle | str | os.PathLike[str], server: str | Iterable[str], options: DeviceOptions | None = None
    ) -> None:
        """Load the head and prove it on the golden frame; nothing is sent yet.

        Args:
            bundle: a bundle or its path; the device's half is enough.
            server: "host:port", or several that hold the same bundle: the next is tried where one fails.
            options: how to work.

        Raises:
            BundleError: damaged, incomplete, or not reproduced by this machine.
            QualityError: no such cut or quality.
            UsageError: a server's address is none.
        """
        self.options = options or DeviceOptions()
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, Half.DEVICE)
        self._open = False
        servers = (server,) if isinstance(server, str) else tuple(server)
        manifest = self.bundle.manifest
        timeout_s = self.options.timeout_s
        self._uplink = Uplink(
            servers,
            Greeting(manifest.name, self.bundle.digest, self.options.wanted),
            UplinkOptions(timeout_s, self.options.stall_s or timeout_s / 5, link=self.options.link),
        )
        self._default_cut = manifest.cut(self.options.cut)[1]
        self._stages = self._load()
        self.tally = Tally()
        """How frames ended so far."""
        self._point(self.options.quality)

    def _load(self) -> Stages:
        options, manifest = self.options, self.bundle.manifest
        chosen = [self._default_cut] if isinstance(options.policy, Static) else manifest.cuts
        halves = {
            cut.name: CutParts(index, Head(self.bundle, cut, options.session), FrameCodec(self.bundle, index))
            for index, cut in enumerate(manifest.cuts)
            if cut in chosen
        }
        planner = Planner(options.policy, [half.head.cut for half in halves.values()], options.power)
        local = LocalModel(self.bundle, options.session) if options.fallback and manifest.local else None
        if local is not None:
            planner.local = Duration(local.first_s)
        return Stages(halves, Reader(manifest, options.wanted), self._uplink, planner, options.timeout_s, local)

    def __enter__(self) -> Device:
        self._uplink.open()
        if self._stages.fallback is not None:
            self._stages.fallback.open()
        self._open = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection; frames under way end in an error."""
        if self._open:
            self._open = False
            if self._stages.fallback is not None:
                self._stages.fallback.close()
            self._uplink.close()

    @property
    def planner(self) -> Planner:
        """What is expected of the link and of every operating point."""
        return self._stages.planner

    @property
    def counters(self) -> Counters:
        """What happened on the link so far."""
        return self._uplink.counters

    def stream(
        self, frames: Iterable[Value] | str | os.PathLike[str], *, quality: int | None = None
    ) -> Iterator[Outcome]:
        """Every frame's outcome, in the order of the frames, several of them under way at once.

        Args:
            frames: arrays (`uint8` `[height, width, 3]` pictures of any size, or the exact tensors), tuples or dicts of
                them for several inputs; or a path that `narrows run --input` takes.
            quality: of every frame; 0 is the smallest payload.

        Yields:
            One outcome a frame. What goes wrong with one frame is in its outcome, and the rest goes on.

        Raises:
            NarrowsError: no further frame can be answered (the server has no such model, or another bundle); after the
                outcomes of those that were taken.
            QualityError: no such quality.
            SourceError: nothing at the path.
        """
        self._check_open()
        point = self._point(quality)
        pipeline = Pipeline(
            begin=self._reader(frames, point),
            stages=(self._stages.compute, self._stages.encode),
            window=self.options.window,
            fatal=lambda: self._uplink.fatal,
        )
        return pipeline.outcomes()

    def infer(self, frame: Value, *, quality: int | None = None) -> Outcome:
        """One frame's outcome, by the shortest way: head and coder run in the calling thread.

        Args:
            frame: as for `stream`.
            quality: 0 is the smallest payload.

        Raises:
            QualityError: no such quality.
        """
        self._check_open()
        arrived: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        journey = self._reader([frame], self._point(quality))(0, lambda _, outcome: arrived.put(outcome))
        for stage in (self._stages.compute, self._stages.encode):
            if not journey.ended:
                journey.do(stage)
        return arrived.get()

    def _check_open(self) -> None:
        if not self._open:
            raise UsageError("the device is not open; use it as `with Device(…) as device:`")

    def _point(self, quality: int | None) -> Point:
        cut = self._default_cut
        wanted = quality if quality is not None else self.options.quality
        chosen = len(cut.qualities) - 1 if wanted is None else wanted
        cut.check_quality(chosen)
        return Point("split", cut.name, chosen)

    def _reader(
        self, frames: Iterable[Value] | str | os.PathLike[str], point: Point
    ) -> Callable[[int, Callable[[Journey, Outcome], None]], Journey]:
        """What reads the next frame and makes a journey of it."""
        manifest, deadline_ms = self.bundle.manifest, self.options.deadline_ms
        if isinstance(frames, (str, os.PathLike)):
            values: Iterator[Value] = open_source(os.fspath(frames), manifest)
        else:
            values = iter(frames)

        def begin(index: int, arrived: Callable[[Journey, Outcome], None]) -> Journey:
            began = time.monotonic()
            taken = as_input(next(values), f"frame {index}", manifest)
            there = time.monotonic()

            def ended(journey: Journey, outcome: Outcome) -> None:
                self.tally.count(outcome)
                arrived(journey, outcome)

            return Journey(
                index=index,
                input=taken,
                point=point,
                began=there,
                ms={"source": (there - began) * 1000},
                arrived=ended,
                deadline=None if deadline_ms is None else there + deadline_ms / 1000,
            )

        return begin
