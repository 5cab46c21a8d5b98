"""Tells the service manager that frames still end; a device that hangs is started anew."""

from __future__ import annotations

import threading

from ..runtime.notify import ALIVE, READY, STOPPING, notify, watchdog_s
from .device import Device


class Watchdog:
    """Between its entering and its leaving, the manager hears READY, then ALIVE as long as no frame is overdue.

    Every frame ends by its time-out, and with the fallback one local run later. Where frames are under way and none has
    ended for three times as long, a thread hangs, perhaps in a driver: nothing is said then, and systemd's
    `WatchdogSec` does the rest. Where no manager asked, nothing happens.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        every_s = watchdog_s()
        self._every_s = None if every_s is None else every_s / 3
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="narrows-watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        notify(READY)
        if self._every_s is not None:
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        notify(STOPPING)

    def _work(self) -> None:
        while not self._over.wait(self._every_s):
            if self._device.oldest_s() <= 3 * self._device.options.timeout_s:
                notify(ALIVE)
