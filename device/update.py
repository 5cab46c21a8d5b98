"""Keeping a running device at the version that its server serves."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from ..runtime.errors import NarrowsError, UsageError
from .device import Device
from .pull import PullOptions, newest_digest, pull

log = logging.getLogger(__name__)

_LEAST_S = 1.0
"""Between two tries, however often the server refuses the old version meanwhile."""


class Updater:
    """Looks for a new version now and then, and at once when the server refuses the one in use.

        with Device(target, server) as device, Updater(device, server, target):
            for outcome in device.stream(frames): ...

    A new version is pulled, tried on this machine and swapped in between two frames. What goes wrong with one is
    logged, and the device goes on with the version that it has.
    """

    def __init__(
        self, device: Device, server: str, target: Path, every_s: float = 60.0, options: PullOptions | None = None
    ) -> None:
        """Prepare.

        Args:
            device: open, with the bundle at `target`.
            server: "host:port" to pull from.
            target: the link that `pull` keeps.
            every_s: between two looks.
            options: how to fetch.

        Raises:
            UsageError: an interval that is none.
        """
        if every_s <= 0:
            raise UsageError("the time between two looks for a new version must be positive")
        self._device = device
        self._server = server
        self._target = target
        self._every_s = every_s
        self._options = options
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="narrows-updates", daemon=True)
        self.swaps = 0
        """Versions that were swapped in."""

    def __enter__(self) -> Updater:
        self._device.swappable = True
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._device.swappable = False
        self._closed.set()
        self._device.outdated.set()  # wakes the thread
        self._thread.join()

    def _work(self) -> None:
        while True:
            self._device.outdated.wait(self._every_s)
            if self._closed.wait(_LEAST_S if self._device.outdated.is_set() and self.swaps else 0):
                return
            try:
                self._look()
            except NarrowsError as error:
                log.warning("no new version of %s: %s", self._device.bundle.manifest.name, error)
                if self._closed.wait(_LEAST_S):
                    return

    def _look(self) -> None:
        name, held = self._device.bundle.manifest.name, self._device.bundle.digest
        if newest_digest(self._server, name, self._options) == held:
            self._device.outdated.clear()
            return
        bundle = pull(self._server, name, self._target, self._options)
        self._device.swap(bundle)
        self.swaps += 1
        log.info("%s is now %s", name, bundle.digest[:12])
