"""torch's exporters talk about themselves; who cuts a model has nothing to do about it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_NOISY = ("torch.onnx", "onnxscript")


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep the exporters' deprecations and remarks on what is not installed from the user; errors still come."""
    logs = [logging.getLogger(name) for name in _NOISY]
    levels = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
