"""One bundle at work on a device: its graphs, its connection, what is expected of both."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from ..runtime.bundle import Bundle
from ..runtime.errors import NarrowsError, UsageError
from ..runtime.manifest import Manifest
from ..runtime.point import Point
from ..runtime.session import SessionOptions
from .conversation import Conversation, Converse, Greeting
from .estimates import Duration
from .local import LocalModel
from .offload import check_offloadable
from .oip import CODER, oip_conversation
from .options import DeviceOptions
from .pipeline import Journey
from .planner import Planner
from .policies import Static
from .predictions import Reader
from .providers import choose
from .stages import CutParts, Stages
from .uplink import Uplink, UplinkOptions

log = logging.getLogger(__name__)

_JPEG_BYTES = 0.25
"""A photograph's bytes a pixel, until the first one is there."""


class Engine:
    """All of a device that belongs to one bundle, so that a new bundle is a new engine."""

    def __init__(
        self,
        bundle: Bundle,
        servers: Sequence[str],
        options: DeviceOptions,
        on_fatal: Callable[[NarrowsError], None] | None = None,
    ) -> None:
        """Load the graphs and prove them on the golden frame; nothing is sent yet.

        Args:
            bundle: the device's half at least.
            servers: "host:port" of each.
            options: how to work.
            on_fatal: told when no frame can ever be answered over the link; from any thread.

        Raises:
            BundleError: this machine does not reproduce the bundle.
            QualityError: no such cut or quality.
            UsageError: a server's address is none.
        """
        self.bundle = bundle
        self._options = options
        self._cut = bundle.manifest.cut(options.cut)[1]
        self.point(options.quality)
        self._cut.check_tails(options.wanted.tails)
        coders: tuple[str, ...] = options.coders
        converse: Converse = Conversation
        if options.open_inference is not None:
            coders, converse = (CODER,), oip_conversation(options.open_inference, bundle.manifest, self._cut)
        self.uplink = Uplink(
            servers,
            Greeting(bundle.manifest.name, bundle.digest, options.wanted, coders),
            UplinkOptions(options.timeout_s, options.stall_s or options.timeout_s / 5, link=options.link),
            on_fatal,
            converse,
        )
        session = choose(bundle, self._cut, options.session, log.warning) if options.try_providers else options.session
        self.stages = self._load(session)
        self._idle = threading.Condition(threading.Lock())
        self._under_way = 0
        self._last_end = time.monotonic()

    def _load(self, session: SessionOptions) -> Stages:
        options, manifest, wanted = self._options, self.bundle.manifest, self._options.wanted
        # A stock server holds one tail.
        alone = isinstance(options.policy, Static) or options.open_inference is not None
        chosen = [self._cut] if alone else manifest.cuts
        # Exit and whole model answer for the cut's own tail, and are no substitute where others are asked for.
        own = set(wanted.tails).issubset({self._cut.tail_name})
        exits = own and (options.may_rescue("exit") or options.exit_confidence is not None)
        parts = {
            cut.name: CutParts.load(self.bundle, index, session, wanted, exits=exits)
            for index, cut in enumerate(manifest.cuts)
            if cut in chosen and set(wanted.tails).issubset(cut.tail_names)
        }
        offload = self._offload()
        planner = Planner(
            options.policy,
            [part.head.cut for part in parts.values()],
            options.power,
            offload,
            exit_answers=own and options.may_rescue("exit"),
            exit_confidence=options.exit_confidence,
        )
        whole = own and options.may_rescue("local") and manifest.local is not None
        local = LocalModel(self.bundle, session) if whole else None
        if local is not None:
            planner.local = Duration(local.first_s)
        reader = Reader(manifest.outputs, manifest.labels, wanted)
        inputs = [spec.name for spec in manifest.inputs]
        return Stages(parts, reader, inputs, self.uplink, planner, options, local, offload[0] if offload else None)

    def _offload(self) -> tuple[Point, float] | None:
        """The point at which the picture itself is sent, where that is allowed, and a first guess of its bytes."""
        wanted, manifest = self._options.offload, self.bundle.manifest
        if wanted is None:
            return None
        point = Point("offload", quality=wanted) if isinstance(wanted, int) else wanted
        assert point.quality is not None
        check_offloadable(manifest, point.quality)
        if not set(self._options.wanted.tails).issubset({self._cut.tail_name}):
            raise UsageError(
                "the whole model answers for a cut's own tail alone; leave --offload or the other tails out"
            )
        assert manifest.preprocess is not None
        return point, _JPEG_BYTES * manifest.preprocess.height * manifest.preprocess.width

    def open(self) -> None:
        """Begin to connect."""
        self.uplink.open()
        if self.stages.fallback is not None:
            self.stages.fallback.open()

    def close(self) -> None:
        """Let go of the connection; frames under way end in an error."""
        if self.stages.fallback is not None:
            self.stages.fallback.close()
        self.uplink.close()

    def point(self, quality: int | None) -> Point:
        """The user's own split point.

        Raises:
            QualityError: no such quality.
        """
        wanted = quality if quality is not None else self._options.quality
        chosen = len(self._cut.qualities) - 1 if wanted is None else wanted
        self._cut.check_quality(chosen)
        return Point("split", self._cut.name, chosen)

    def enter(self) -> None:
        """A frame begins."""
        with self._idle:
            if self._under_way == 0:
                self._last_end = time.monotonic()
            self._under_way += 1

    def leave(self) -> None:
        """A frame has ended."""
        with self._idle:
            self._under_way -= 1
            self._last_end = time.monotonic()
            self._idle.notify_all()

    def silent_s(self) -> float:
        """For how long frames have been under way without one of them ending."""
        with self._idle:
            return time.monotonic() - self._last_end if self._under_way else 0.0

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no frame is under way; False where the time was too short."""
        with self._idle:
            return self._idle.wait_for(lambda: self._under_way == 0, timeout_s)

    def compute(self, journey: Journey) -> None:
        """See `Stages.compute`."""
        self.stages.compute(journey)

    def encode(self, journey: Journey) -> None:
        """See `Stages.encode`."""
        self.stages.encode(journey)


def check_replaceable(old: Manifest, new: Manifest) -> None:
    """Whether frames that were read for one bundle can be fed to another.

    Raises:
        UsageError: saying what differs.
    """
    for what in ("name", "inputs", "preprocess"):
        if getattr(old, what) != getattr(new, what):
            raise UsageError(f"the new bundle has other {what}; close the device and open it with the new bundle")
