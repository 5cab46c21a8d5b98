"""What the server did lately, for people: totals, and a window of the newest outcomes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..runtime.answer import Reply
from ..runtime.errors import NarrowsError
from .catalogue import Catalogue, Served
from .clients import Holdings
from .job import Job

OK = "ok"
_WINDOW = 4096
"""Newest outcomes that are remembered."""
_RECENT_S = 60.0


class Observer(Protocol):
    """Is told what becomes of frames, on the event loop."""

    def finished(self, job: Job, reply: Reply) -> None:
        """A frame that was taken in has its outcome."""
        ...

    def refused(self, model: str, error: NarrowsError) -> None:
        """A frame was not taken in."""
        ...


@dataclass(frozen=True, slots=True)
class _Seen:
    """One outcome."""

    at_s: float
    route: str
    client: str
    quality: int
    size: int
    code: str
    queue_ms: float
    decode_ms: float
    tail_ms: float
    batch: int


class Tally:
    """Counts outcomes, and sums the newest up for the status page."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._newest: deque[_Seen] = deque(maxlen=_WINDOW)
        self._outcomes: Counter[str] = Counter()

    def finished(self, job: Job, reply: Reply) -> None:
        """Remember an outcome."""
        timing, code = reply.timing, reply.error.code if reply.error else OK
        self._outcomes[code] += 1
        self._newest.append(
            _Seen(
                time.monotonic(),
                job.route,
                job.client.name,
                job.frame.quality,
                job.size,
                code,
                timing.queue_ms,
                timing.decode_ms,
                timing.tail_ms,
                timing.batch,
            )
        )

    def refused(self, model: str, error: NarrowsError) -> None:
        """Count a refusal."""
        self._outcomes[error.code] += 1

    def summary(self, catalogue: Catalogue, holdings: Holdings) -> dict[str, object]:
        """The state of the server as JSON would have it; to be called on the event loop."""
        now = time.monotonic()
        recent = [seen for seen in self._newest if now - seen.at_s < _RECENT_S]
        return {
            "uptime_s": round(now - self._started_s, 1),
            "window_s": _RECENT_S,
            "streams": holdings.all_streams,
            "tasks": len(asyncio.all_tasks()),
            "bytes_in_flight": holdings.all_bytes,
            "outcomes": dict(self._outcomes.most_common()),
            "frames_per_s": round(_rate(recent, now), 1),
            "models": [_model(served) for served in catalogue],
            "points": _points(recent),
            "clients": _clients(recent, holdings),
            "latency_ms": _latencies(recent),
        }


def _rate(recent: Sequence[_Seen], now: float) -> float:
    return len(recent) / max(1.0, now - recent[0].at_s) if recent else 0.0


def _model(served: Served) -> dict[str, object]:
    model = served.model
    cuts = [
        {
            "name": batcher.name.removeprefix(f"{model.name}/"),
            "qualities": len(cut.qualities),
            "queued": len(batcher),
            "best_batch": batcher.best_batch,
            "provider": model.tails[index][tail].provider,
        }
        for index, (cut, tails) in enumerate(zip(model.bundle.manifest.cuts, served.tails, strict=True))
        for tail, batcher in tails.items()
    ]
    return {
        "name": model.name,
        "version": model.path.name,
        "bundle": model.digest,
        "users": served.users,
        "cuts": cuts,
    }


def _points(recent: Iterable[_Seen]) -> list[dict[str, object]]:
    """Operating points in use, busiest first."""
    groups: defaultdict[tuple[str, int], list[_Seen]] = defaultdict(list)
    for seen in recent:
        groups[seen.route, seen.quality].append(seen)
    rows: list[dict[str, object]] = [
        {
            "route": route,
            "quality": quality,
            "frames": len(group),
            "payload_bytes": round(sum(seen.size for seen in group) / len(group)),
            "batch": round(sum(seen.batch for seen in group) / len(group), 1),
        }
        for (route, quality), group in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    return rows


def _clients(recent: Iterable[_Seen], holdings: Holdings) -> list[dict[str, object]]:
    frames, errors = Counter[str](), Counter[str]()
    for seen in recent:
        frames[seen.client] += 1
        errors[seen.client] += seen.code != OK
    names = sorted({*holdings.streams, *frames}, key=lambda name: (-frames[name], name))[:100]
    return [
        {"name": name, "streams": holdings.streams[name], "frames": frames[name], "errors": errors[name]}
        for name in names
    ]


def _latencies(recent: Iterable[_Seen]) -> dict[str, dict[str, float]]:
    good = [seen for seen in recent if seen.code == OK]
    stages = {
        "queue": sorted(seen.queue_ms for seen in good),
        "decode": sorted(seen.decode_ms for seen in good),
        "tail": sorted(seen.tail_ms for seen in good),
    }
    return {
        stage: {f"p{p}": round(values[min(len(values) - 1, len(values) * p // 100)], 3) for p in (50, 95, 99)}
        for stage, values in stages.items()
        if values
    }
