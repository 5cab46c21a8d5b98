"""What `narrows profile` and `narrows plan` write for people to look at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import UsageError

if TYPE_CHECKING:
    from ..report import Situation

ASSUMED_LINK = "10mbit,10ms"
"""Where a profile is shown and no link was named; the page's sliders go everywhere."""


def check_page(path: Path | None) -> None:
    """Refuse a page that no browser would take for one, before anything is measured for it.

    Raises:
        UsageError: it is not called .html, or its folder is not there.
    """
    if path is not None and path.suffix not in (".html", ".htm"):
        raise UsageError(f"a report is an .html file, not {path.name}")
    if path is not None and not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.parent} for the report")


def write(situation: Situation, page: Path | None, png: Path | None, audit: Path | None = None) -> None:
    """Write the page, the pictures, or both.

    Raises:
        UsageError: a file that cannot be read or written.
        MissingDependencyError: without plotly, or matplotlib.
    """
    from ..report import write_pictures, write_report
    from ..runtime.audit import read

    if page is not None:
        write_report(page, situation, None if audit is None else read(audit))
    if png is not None:
        write_pictures(png, situation)
