"""What every verb prints with."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table


def out() -> Console:
    """What verbs print their findings on."""
    # Where nobody's window sets a width, names stay whole: the lines are for a file or another program.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def err() -> Console:
    """What is said beside them."""
    return Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON value on a line of its own."""
    print(json.dumps(value, default=str), flush=True)


def table(title: str | None, *columns: str) -> Table:
    """The first column is a name, the rest are figures."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left", overflow="fold")
    return made
