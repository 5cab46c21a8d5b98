"""Profiles out of round figures, so that what follows from them can be reckoned by hand."""

from __future__ import annotations

from narrows.planner.profile import (
    SCHEMA,
    Batch,
    CutProfile,
    Encoding,
    Machine,
    Profile,
    QualityProfile,
    Sizes,
    Timing,
    Transport,
    Whole,
)

DIGEST = "0" * 64


def timing(ms: float) -> Timing:
    return Timing(ms, ms * 0.95, ms * 1.05, ms * 1.2, 50)


def sizes(mean: float) -> Sizes:
    return Sizes(mean, mean, 1.5 * mean)


def quality(payload: float, agreement: float | None = 1.0, *, accuracy: float | None = None) -> QualityProfile:
    return QualityProfile(
        8.0, sizes(payload), timing(0.5), timing(0.25), 0.1, 0.01, agreement=agreement, accuracy=accuracy
    )


def cut(name: str, head_ms: float, tail_ms: float, *qualities: QualityProfile) -> CutProfile:
    batches = (Batch(1, tail_ms), Batch(2, 1.2 * tail_ms), Batch(4, 1.6 * tail_ms))
    return CutProfile(
        name, 1000, qualities, timing(head_ms), timing(tail_ms), tail_batches=batches, peak_memory_bytes=20_000_000
    )


def profile(*cuts: CutProfile, local_ms: float | None = 100.0, name: str = "board", digest: str = DIGEST) -> Profile:
    """A device whose whole model takes `local_ms`, and a server on which it takes a tenth of that."""
    return Profile(
        schema=SCHEMA,
        model="net",
        digest=digest,
        machine=Machine(name, "processor", 4, 0, ("CPUExecutionProvider",), "1.20"),
        frames=100,
        cuts=cuts,
        whole=Whole() if local_ms is None else Whole(timing(local_ms), (Batch(1, local_ms),)),
        served_by="server:8470",
        server_whole=None if local_ms is None else Whole(timing(local_ms / 10), (Batch(1, local_ms / 10),)),
        encodings=(
            Encoding("jpeg", 50, sizes(9_960), timing(2), timing(1), agreement=0.95),
            Encoding("jpeg", 90, sizes(24_900), timing(2), timing(1), agreement=0.999),
        ),
        transport=Transport(1.0, how="by hand"),
        reply_bytes=60,
    )


def usual(name: str = "board") -> Profile:
    """An early cut of many bytes, and a late one of few."""
    early = cut("early", 10, 9, quality(8_000, 0.97), quality(20_000, 1.0))
    late = cut("late", 40, 6, quality(500, 0.98), quality(2_000, 1.0))
    return profile(early, late, name=name)
