"""The live view of `narrows run --live`: rates, the point in use, the link, on standard error."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType

    from ..device import Device, Outcome
    from ..device.status import Status

_WINDOW_S = 5.0
"""Rates are over the last so many seconds."""
_REDRAWS = 4


class LiveView:
    """Between its entering and its leaving, what a device does, redrawn four times a second."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._device: Device | None = None
        self._recent: deque[tuple[float, int, float]] = deque()
        self._last: Outcome | None = None
        self._live = Live(console=self._console, refresh_per_second=_REDRAWS, get_renderable=self._draw)

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def watch(self, device: Device) -> None:
        """Show this device."""
        self._device = device

    def add(self, outcome: Outcome) -> None:
        """Take an outcome in."""
        now = time.monotonic()
        self._last = outcome
        self._recent.append((now, outcome.wire_bytes, outcome.ms.get("total", 0.0)))
        self._forget(now)

    def _forget(self, now: float) -> None:
        while self._recent and now - self._recent[0][0] > _WINDOW_S:
            self._recent.popleft()

    def _draw(self) -> Group:
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column()
        if self._device is None:
            return Group(Text("loading the bundle …"))
        status = self._device.status()
        for name, text in (
            ("frames", self._rates()),
            ("point", str(status.last_point or "none yet")),
            ("link", _link(status)),
            ("answers", _answers(status)),
            ("last", _last(self._last)),
        ):
            table.add_row(name, Text(text))
        return Group(table)

    def _rates(self) -> str:
        now = time.monotonic()
        recent = [one for one in list(self._recent) if now - one[0] <= _WINDOW_S]
        if len(recent) < 2:
            return "none in the last seconds"
        span = max(now - recent[0][0], 1e-3)
        total = sorted(ms for _, _, ms in recent)
        bits = sum(size for _, size, _ in recent) * 8 / span
        middle, high = total[len(total) // 2], total[min(len(total) - 1, len(total) * 95 // 100)]
        return f"{len(recent) / span:.1f}/s, {bits / 1e6:.3f} Mbit/s sent, {middle:.1f} ms p50, {high:.1f} ms p95"


def _link(status: Status) -> str:
    if not status.connected:
        return f"down for {status.down_s:.0f} s, breaker {status.breaker}"
    if status.goodput_bps is None or status.delay_ms is None:
        return "up"
    return (
        f"up, {status.goodput_bps / 1e6:.2f} Mbit/s, {status.delay_ms:.1f} ms there and back, breaker {status.breaker}"
    )


def _answers(status: Status) -> str:
    said = [f"{status.server} server", f"{status.exit} early exit", f"{status.local} here"]
    more = {"rescued": status.rescued, "errors": status.errors, "dropped": status.dropped, "late": status.late}
    return ", ".join([*said, *(f"{count} {what}" for what, count in more.items() if count)])


def _last(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    if outcome.error is not None:
        return f"{outcome.source}  {outcome.outcome}: {outcome.error}"
    best = outcome.top[0] if outcome.top else None
    return f"{outcome.source}  " + (f"{best.label or best.index} {best.score:.2f}" if best else "")
