"""The application that the verbs register with, and what they share."""

from __future__ import annotations

import importlib.util
import logging
import os
from typing import Annotated

import typer

from ..runtime.errors import MissingDependencyError, UsageError
from ..runtime.version import VERSION

app = typer.Typer(
    name="narrows",
    help="Split computing for edge inference: head on the device, tail on a server, few bytes between.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads a graph may use; 0 for one a core.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"narrows {VERSION}")
        raise typer.Exit


@app.callback()
def _settings(
    version: Annotated[
        bool, typer.Option("--version", help="Print the release.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error, and log everything.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if debug:
        os.environ["NARROWS_DEBUG"] = "1"


def keep_to_cpus(text: str) -> None:
    """Keep this process, and every thread that it starts from now on, to some cores.

    Args:
        text: numbers and ranges, joined by commas: "2,3" or "0-3".

    Raises:
        UsageError: no list of cores, or none of this machine's.
    """
    cores: set[int] = set()
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            cores |= set(range(int(first), int(last or first) + 1))
        os.sched_setaffinity(0, cores)
    except (ValueError, OverflowError, OSError):
        here = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
        raise UsageError(
            f"--cpus takes numbers such as 2,3 or 0-3, not {text!r}; this process may use {here}"
        ) from None


def need(extra: str, *modules: str) -> None:
    """Say which extra brings what is missing.

    Raises:
        MissingDependencyError: naming the line that installs it.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingDependencyError(f"this needs {', '.join(missing)}: pip install 'narrows[{extra}]'")
