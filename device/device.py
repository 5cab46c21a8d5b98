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
from ..runtime.link import LinkOptions
from ..runtime.manifest import Half
from ..runtime.session import SessionOptions
from .conversation import Greeting
from .inputs import Value, as_input
from .outcome import Outcome, Point
from .pipeline import Journey, Pipeline
from .sources import open_source
from .stages import Split
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
    timeout_s: float = 10.0
    """A frame that has no answer by then ends in an error."""
    stall_s: float | None = None
    """Silence of a server that owes an answer, after which the connection is made anew and what it owes is sent again;
    a fifth of `timeout_s` where none is given."""
    window: int = 8
    """Frames between their input and the caller, at most."""
    session: SessionOptions = field(default_factory=SessionOptions)
    link: LinkOptions = field(default_factory=LinkOptions)

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UsageError(f"a window of {self.window} frames is none; give 1 or more")
        if self.timeout_s <= 0 or (self.stall_s is not None and self.stall_s <= 0):
            raise UsageError("timeouts must be positive")


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
        self._split = Split.load(
            self.bundle,
            self.options.cut,
            self._uplink,
            wanted=self.options.wanted,
            timeout_s=timeout_s,
            session=self.options.session,
        )
        self._point(self.options.quality)

    def __enter__(self) -> Device:
        self._uplink.open()
        self._open = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection; frames under way end in an error."""
        if self._open:
            self._open = False
            self._uplink.close()

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
            stages=(self._split.head, self._split.encode),
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
        for stage in (self._split.head, self._split.encode):
            if not journey.ended:
                journey.do(stage)
        return arrived.get()

    def _check_open(self) -> None:
        if not self._open:
            raise UsageError("the device is not open; use it as `with Device(…) as device:`")

    def _point(self, quality: int | None) -> Point:
        cut = self._split.head_graph.cut
        wanted = quality if quality is not None else self.options.quality
        chosen = len(cut.qualities) - 1 if wanted is None else wanted
        cut.check_quality(chosen)
        return Point("split", cut.name, chosen)

    def _reader(
        self, frames: Iterable[Value] | str | os.PathLike[str], point: Point
    ) -> Callable[[int, Callable[[Journey, Outcome], None]], Journey]:
        """What reads the next frame and makes a journey of it."""
        manifest = self.bundle.manifest
        if isinstance(frames, (str, os.PathLike)):
            values: Iterator[Value] = open_source(os.fspath(frames), manifest)
        else:
            values = iter(frames)

        def begin(index: int, arrived: Callable[[Journey, Outcome], None]) -> Journey:
            began = time.monotonic()
            taken = as_input(next(values), f"frame {index}", manifest)
            there = time.monotonic()
            return Journey(index, taken, point, there, {"source": (there - began) * 1000}, arrived)

        return begin
