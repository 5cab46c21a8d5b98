"""The command line: one function a verb. What a verb does lives in the rooms; here it is asked for and printed."""

from __future__ import annotations

import os
import sys

from ..runtime.errors import InternalError, NarrowsError, UsageError
from . import audit, bench, deploy, device, model, planning, server, train, whole
from .app import app

__all__ = ["app", "audit", "bench", "deploy", "device", "main", "model", "planning", "server", "train", "whole"]


def main() -> None:
    """Run the command line and exit: 0, or the exit code of what went wrong."""
    # gRPC's core writes its own remarks to stderr; what they mean for the user, an error of ours says.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        code = app(standalone_mode=False)
    except NarrowsError as error:
        _fail(error, f"{error.code}: {error}", error.exit_code)
    except BrokenPipeError:  # the reader has seen enough: `narrows run … --json | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(error, f"{UsageError.code}: {where}{error.strerror or error}", UsageError.exit_code)
    except Exception as error:  # noqa: BLE001 - the last resort: a stranger's module, a library's surprise
        _fail_for_usage(error)
        what = " ".join(f"{type(error).__name__}: {error}".split())
        _fail(error, f"{InternalError.code}: {what} (narrows --debug VERB … shows where)", InternalError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _fail_for_usage(error: Exception) -> None:
    """Say in one line what is wrong with the words that were typed, where that is what the error says.

    Typer's own class for these has been in three places so far; what they have in common is how they are told.
    """
    told = getattr(error, "format_message", None)
    if type(error).__name__ == "Abort":
        sys.exit(130)
    if told is None:
        return
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(told(), file=sys.stderr)
        sys.exit(UsageError.exit_code)
    verb = f"narrows {context.info_name}" if context is not None and context.parent is not None else "narrows"
    text = " ".join(str(told()).split()).rstrip(".")
    _fail(error, f"{UsageError.code}: {text} ({verb} --help shows what there is)", UsageError.exit_code)


def _fail(error: Exception, text: str, exit_code: int) -> None:
    """Say in one line what went wrong, and exit; with --debug, show where."""
    if os.environ.get("NARROWS_DEBUG"):
        raise error
    print(f"narrows: {text}", file=sys.stderr)
    sys.exit(exit_code)
