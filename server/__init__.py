"""Features in, predictions out: bundles from a folder, frames from many devices, tails in ONNX Runtime."""

from .app import Listening, ServerThread, serve
from .batcher import BatchOptions
from .clients import ClientLimits
from .options import ServeOptions, best_providers
from .security import TlsOptions

__all__ = [
    "BatchOptions",
    "ClientLimits",
    "Listening",
    "ServeOptions",
    "ServerThread",
    "TlsOptions",
    "best_providers",
    "serve",
]
