"""Features in, predictions out: bundles from a folder, frames from many devices, tails in ONNX Runtime."""

from .app import ServerThread, serve
from .batcher import BatchOptions
from .options import ServeOptions

__all__ = ["BatchOptions", "ServeOptions", "ServerThread", "serve"]
