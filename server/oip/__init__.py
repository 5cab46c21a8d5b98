"""The Open Inference Protocol: KServe v2 with Triton's additions, so that their clients are served unchanged."""

from .service import METHODS, STREAM, OpenInference, add_open_inference

__all__ = ["METHODS", "STREAM", "OpenInference", "add_open_inference"]
