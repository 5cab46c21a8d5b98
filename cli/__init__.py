"""The command line: one function a verb. What a verb does lives in the rooms; here it is asked for and printed."""

from __future__ import annotations

import os
import sys

from ..runtime.errors import NarrowsError
from . import device, model, server, whole
from .app import app

__all__ = ["app", "device", "main", "model", "server", "whole"]


def main() -> None:
    """Run the command line and exit: 0, or the exit code of what went wrong."""
    try:
        app()
    except NarrowsError as error:
        if os.environ.get("NARROWS_DEBUG"):
            raise
        print(f"narrows: {error.code}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader has seen enough: `narrows run … --json | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
