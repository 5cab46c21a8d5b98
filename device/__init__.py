"""Bundle head and link in, outcomes out."""

from ..runtime.cost import PowerModel
from ..runtime.point import Point
from .device import Device
from .inputs import Input
from .oip import OpenInference
from .options import DeviceOptions
from .outcome import Answer, Outcome, Prediction
from .policies import Adaptive, Always, Neurosurgeon, Policy, Static
from .run import run_source, save
from .sources import open_source
from .status import Status
from .uplink import Counters

__all__ = [
    "Adaptive",
    "Always",
    "Answer",
    "Counters",
    "Device",
    "DeviceOptions",
    "Input",
    "Neurosurgeon",
    "OpenInference",
    "Outcome",
    "Point",
    "Policy",
    "PowerModel",
    "Prediction",
    "Static",
    "Status",
    "open_source",
    "run_source",
    "save",
]
