"""The Open Inference Protocol: KServe v2 with Triton's additions, so that their clients are served unchanged."""

from .service import OpenInference

__all__ = ["OpenInference"]
