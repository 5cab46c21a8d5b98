"""One file that opens from disk, without a network: pictures, sliders, tables."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from ..runtime.audit import Audit
from ..runtime.errors import MissingDependencyError, UsageError
from ..runtime.version import VERSION
from .figures import Situation, figures


def write_report(path: Path, situation: Situation | None, audit: Audit | None = None) -> None:
    """Write the page.

    Args:
        path: the file, `.html`.
        situation: profiles, link and bounds; None for a page about an audit alone.
        audit: what came back out of the features.

    Raises:
        MissingDependencyError: without plotly.
        ProfileError: profiles of two models.
        UsageError: the file cannot be written.
    """
    text = render(situation, audit)
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror or error})") from None


def render(situation: Situation | None, audit: Audit | None = None) -> str:
    """The page's text.

    Raises:
        MissingDependencyError: without plotly.
        ProfileError: profiles of two models.
    """
    values: dict[str, Any] = {"audit": None if audit is None else asdict(audit), "points": None, "notes": []}
    values |= {} if situation is None else figures(situation)
    name = values.get("model") or (audit.model if audit is not None else "")
    values |= {"title": f"{name}: where to cut" if situation else f"{name}: what its features give away"}
    values |= {"subtitle": _subtitle(values, audit), "notes": _notes(values)}
    scripts = {"plotly": _plotly() if situation is not None else "", "script": _part("formula.js") + _part("page.js")}
    # Nothing but these very scripts runs, and nothing is loaded from, or sent to, anywhere.
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts.values())
    parts = {
        "policy": f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:",
        "title": html.escape(str(values["title"])),
        "css": _part("page.css"),
        "data": _embedded(values),
        **scripts,
    }
    pieces = _part("page.html").split("@@")
    # Names stand at the odd places; what is put in is never looked at again.
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def _embedded(values: dict[str, Any]) -> str:
    """JSON that can stand in a script element whatever strings it holds: no <, and no > or & either."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _subtitle(values: dict[str, Any], audit: Audit | None) -> str:
    machines = values.get("machines")
    if machines is None:
        return "" if audit is None else f"cut at {audit.cut}; {audit.bundle[:12]}"
    places = f"device {machines[0]}, server {machines[1]}" if len(machines) > 1 else f"both ends {machines[0]}"
    return f"{places}; {values['frames']} pictures; {str(values['digest'])[:12]}"


def _notes(values: dict[str, Any]) -> list[str]:
    notes = list(values["notes"])
    if values["points"] is not None:
        transport = values["transport"]
        how = transport["how"] or "not said how"
        notes += [
            f"Beside the link itself, a frame costs {transport['fixed_ms']:.2f} ms and {transport['byte_us']:.3f} µs a "
            f"byte ({how}).",
            "latency = head + encode + (fixed + bytes × 8 / rate + round trip) + queue + decode + tail, medians; the "
            "sliders evaluate the planner's own formula.",
            "Energy: " + ("the device's meter." if values["power"]["measured"] else "a model, not a measurement."),
        ]
    if (audit := values["audit"]) is not None:
        height, width = audit["size"]
        notes.append(
            f"Audit of {audit['cut']}: {audit['trained_on']} pictures to learn from, {audit['tried_on']} others to "
            f"try, at {width}×{height}; seed {audit['seed']}."
        )
        if audit["cut_short"]:
            notes.append("The audit's time was too short for all steps of the training.")
    return [*notes, f"narrows {VERSION}"]


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingDependencyError("a report needs plotly: pip install 'narrows[report]'") from None
    return str(get_plotlyjs())


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
