"""Callables of the user's own, named as `package.module:callable`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...runtime.errors import UsageError


def own_callable(spec: str) -> Callable[..., Any]:
    """Import it. The working folder is searched, as `python -m` does.

    Raises:
        UsageError: there is none.
    """
    module, colon, attribute = spec.partition(":")
    if not colon:
        raise UsageError(f"{spec!r} is not package.module:callable")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{spec} cannot be imported ({error})") from None
    if not callable(found):
        raise UsageError(f"{spec} is not callable")
    made: Callable[..., Any] = found
    return made
