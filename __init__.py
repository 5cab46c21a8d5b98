"""Split computing for edge inference: head on the device, tail on a server, few bytes between.

    with narrows.Device("resnet56", "server:8470") as device:
        for outcome in device.stream(frames):
            print(outcome.top)

The names below are loaded when they are first used, so that `import narrows` costs a board next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .runtime.version import VERSION as __version__

if TYPE_CHECKING:
    from .device import Device, DeviceOptions, Outcome
    from .runtime.bundle import Bundle
    from .runtime.errors import NarrowsError
    from .runtime.manifest import Half

_HOMES = {
    "Bundle": "runtime.bundle",
    "Device": "device",
    "DeviceOptions": "device",
    "Half": "runtime.manifest",
    "NarrowsError": "runtime.errors",
    "Outcome": "device",
}

__all__ = ["Bundle", "Device", "DeviceOptions", "Half", "NarrowsError", "Outcome", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
