"""Bundle head and link in, outcomes out."""

from .device import Device
from .inputs import Input
from .options import DeviceOptions
from .outcome import Outcome, Point, Prediction
from .run import run_source, save
from .sources import open_source
from .uplink import Counters

__all__ = [
    "Counters",
    "Device",
    "DeviceOptions",
    "Input",
    "Outcome",
    "Point",
    "Prediction",
    "open_source",
    "run_source",
    "save",
]
