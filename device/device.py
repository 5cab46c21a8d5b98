"""A device: the head here, the tail on a server, an outcome for every frame."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from ..runtime.bundle import Bundle
from ..runtime.errors import BundleMismatchError, NarrowsError, UsageError
from ..runtime.manifest import Half
from . import tracing
from .engine import Engine, check_replaceable
from .inputs import Value, as_input
from .live import Intake
from .options import DeviceOptions
from .outcome import Outcome, Tally
from .pipeline import Journey, Pipeline
from .planner import Planner
from .sources import open_source
from .status import Status
from .uplink import Counters
from .window import Window

Arrived = Callable[[Journey, Outcome], None]


class Device:
    """Runs the head of a bundle here and its tail on a server.

        with Device("bundles/resnet56", "server:8470") as device:
            for outcome in device.stream(frames):
                print(outcome.top)

    Safe to use from several threads: each may have a stream of its own over the one connection.
    """

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str],
        server: str | Iterable[str],
        options: DeviceOptions | None = None,
        *,
        tails: Iterable[str] = (),
    ) -> None:
        """Load the head and prove it on the golden frame; nothing is sent yet.

        Args:
            bundle: a bundle or its path; the device's half is enough.
            server: "host:port", or several that hold the same bundle: the next is tried where one fails.
            options: how to work.
            tails: which of the cut's tails are to answer each frame, by name, instead of those that `options.wanted`
                names; all of them from one payload.

        Raises:
            BundleError: damaged, incomplete, or not reproduced by this machine.
            QualityError: no such cut, quality or tail.
            UsageError: a server's address is none.
        """
        self.options = options or DeviceOptions()
        if named := tuple(tails):
            self.options = replace(self.options, wanted=replace(self.options.wanted, tails=named))
        self._servers = (server,) if isinstance(server, str) else tuple(server)
        self._open = False
        self._engine = self._make(
            bundle if isinstance(bundle, Bundle) else Bundle.open(os.path.realpath(bundle), Half.DEVICE)
        )
        self.tally = Tally()
        """How frames ended so far."""
        self.outdated = threading.Event()
        """Set while a server refuses this bundle because it serves another version."""
        self.swappable = False
        """Somebody will `swap` an outdated bundle, so that streams go on meanwhile."""

    def _make(self, bundle: Bundle) -> Engine:
        return Engine(bundle, self._servers, self.options, self._refused)

    def _refused(self, error: NarrowsError) -> None:
        if isinstance(error, BundleMismatchError):
            self.outdated.set()

    def __enter__(self) -> Device:
        self._engine.open()
        self._open = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection; frames under way end in an error."""
        if self._open:
            self._open = False
            self._engine.close()

    @property
    def bundle(self) -> Bundle:
        """What new frames run through."""
        return self._engine.bundle

    @property
    def planner(self) -> Planner:
        """What is expected of the link and of every operating point."""
        return self._engine.stages.planner

    @property
    def counters(self) -> Counters:
        """What happened on the link, since the bundle was opened."""
        return self._engine.uplink.counters

    def status(self) -> Status:
        """How things are just now; cheap enough to be asked ten times a second."""
        engine = self._engine
        planner = engine.stages.planner
        return Status(
            connected=engine.uplink.down_s() == 0,
            down_s=engine.uplink.down_s(),
            breaker=planner.breaker.state,
            goodput_bps=planner.link.goodput_bps if planner.link.samples else None,
            delay_ms=planner.link.delay_s * 1000 if planner.link.samples else None,
            last_point=planner.last_point,
            server=self.tally.server,
            exit=self.tally.exit,
            local=self.tally.local,
            rescued=self.tally.rescued,
            errors=self.tally.errors.total(),
            dropped=self.tally.dropped,
            late=engine.uplink.counters.late,
            resent=engine.uplink.counters.resent,
            connections=engine.uplink.counters.connections,
        )

    def oldest_s(self) -> float:
        """For how long frames have been under way without one of them ending; 0 where none is under way."""
        return self._engine.silent_s()

    def swap(self, bundle: Bundle) -> None:
        """Replace the bundle between two frames; streams go on. Returns when the old bundle's frames have ended.

        Raises:
            BundleError: this machine does not reproduce the new bundle; the old one stays.
            UsageError: it takes other inputs.
        """
        self._check_open()
        check_replaceable(self.bundle.manifest, bundle.manifest)
        new, old = self._make(bundle), self._engine
        new.open()
        self._engine = new
        self.outdated.clear()
        old.wait_idle(self.options.timeout_s)
        old.close()

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
        self._engine.point(quality)
        values = self._values(frames)
        return self._outcomes(values, quality)

    def _outcomes(self, values: Iterator[Value], quality: int | None) -> Iterator[Outcome]:
        options = self.options
        intake = None if options.drop == "block" else Intake(values, options.drop, self.tally.drop)
        pipeline = Pipeline(
            begin=self._reader(intake or values, quality),
            stages=(_compute, _encode),
            window=Window(options.window),
            carriers=options.window,
            fatal=self._fatal,
        )
        try:
            yield from pipeline.outcomes()
        finally:
            if intake is not None:
                intake.close()

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
        journey = self._reader(iter([frame]), quality)(0, lambda _, outcome: arrived.put(outcome))
        for stage in (_compute, _encode):
            if not journey.ended:
                journey.do(stage)
        return arrived.get()

    def warm_up(self, frames: Iterable[Value]) -> None:
        """Run every graph on some frames and send nothing, so that a policy knows how long each takes.

        Raises:
            NarrowsError: a frame that the model does not take.
        """
        for index, frame in enumerate(frames):
            self._engine.stages.warm_up(as_input(frame, f"frame {index}", self.bundle.manifest))

    def _check_open(self) -> None:
        if not self._open:
            raise UsageError("the device is not open; use it as `with Device(…) as device:`")

    def _fatal(self) -> NarrowsError | None:
        """Why no further frame can be answered, where nothing will change that."""
        error = self._engine.uplink.fatal
        return None if self.swappable and isinstance(error, BundleMismatchError) else error

    def _values(self, frames: Iterable[Value] | str | os.PathLike[str]) -> Iterator[Value]:
        if isinstance(frames, (str, os.PathLike)):
            return open_source(os.fspath(frames), self.bundle.manifest)
        return iter(frames)

    def _reader(self, values: Iterator[Value], quality: int | None) -> Callable[[int, Arrived], Journey]:
        """What reads the next frame and makes a journey of it.

        Raises:
            QualityError: no such quality.
        """
        self._engine.point(quality)
        manifest, deadline_ms = self.bundle.manifest, self.options.deadline_ms

        def begin(index: int, arrived: Arrived) -> Journey:
            began = time.monotonic()
            taken = as_input(next(values), f"frame {index}", manifest)
            there = time.monotonic()
            engine = self._engine
            engine.enter()

            def ended(journey: Journey, outcome: Outcome) -> None:
                engine.leave()
                self.tally.count(outcome)
                if journey.trace is not None:
                    journey.trace.end(outcome)
                arrived(journey, outcome)

            return Journey(
                index=index,
                input=taken,
                engine=engine,
                point=engine.point(quality),
                began=there,
                ms={"source": (there - began) * 1000},
                arrived=ended,
                trace=tracing.begin(there),
                deadline=None if deadline_ms is None else there + deadline_ms / 1000,
            )

        return begin


def _compute(journey: Journey) -> None:
    journey.engine.compute(journey)


def _encode(journey: Journey) -> None:
    journey.engine.encode(journey)
