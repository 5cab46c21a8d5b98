"""Made-up profiles for what shows them: a network that narrows, cut at a few places, on a board and a server."""

from __future__ import annotations

from narrows.planner.choose import Constraints
from narrows.planner.link import Link
from narrows.planner.predict import Conditions
from narrows.planner.profile import (
    SCHEMA,
    Batch,
    CutProfile,
    Encoding,
    Estimate,
    Machine,
    Profile,
    QualityProfile,
    Sizes,
    Timing,
    Transport,
    Whole,
)
from narrows.report import Situation

HOSTILE = "<img src=x onerror=alert(1)></script><script>document.title='owned'</script>&lt;"
NAMES = ("/features/features.1/conv/Add_output_0", "layer2.1/Relu", HOSTILE, "layer4/Relu; pool")
TOTAL_MS = 180.0


def timing(ms: float) -> Timing:
    return Timing(ms, 0.97 * ms, 1.03 * ms, 1.25 * ms, 40)


def sizes(mean: float) -> Sizes:
    return Sizes(mean, 0.97 * mean, 1.3 * mean)


def cut(name: str, depth: float, elements: int, *, speed: float) -> CutProfile:
    ladder = tuple(
        QualityProfile(
            bits=bits,
            payload=sizes(elements * bits / 8 * 0.6),
            encode=timing(elements * 2e-5 * speed),
            decode=timing(elements * 1.5e-5 * speed),
            agreement=agreement,
        )
        for bits, agreement in ((2, 0.81), (3, 0.93), (4, 0.98), (8, 1.0))
    )
    tail_ms = TOTAL_MS * (1 - depth) * speed
    return CutProfile(
        name,
        elements,
        ladder,
        head=timing(TOTAL_MS * depth * speed),
        tail=timing(tail_ms),
        tail_batches=tuple(Batch(n, tail_ms * (0.4 + 0.6 * n)) for n in (1, 2, 4, 8)),
        head_bytes=int(2e6 * depth),
        peak_memory_bytes=int(4e7 * (1 + depth)),
    )


def profile(machine: str, speed: float = 1.0, names: tuple[str, ...] = NAMES) -> Profile:
    """A profile of a machine; `speed` times its durations."""
    depths, elements = (0.12, 0.35, 0.5, 0.8), (75264, 25088, 9408, 31360)
    total = TOTAL_MS * speed
    return Profile(
        schema=SCHEMA,
        model="tiny <b>net</b>",
        digest="0" * 64,
        machine=Machine(machine, "a processor", 4, 0, ("CPUExecutionProvider",), "1.23"),
        frames=32,
        cuts=tuple(cut(n, d, e, speed=speed) for n, d, e in zip(names, depths, elements, strict=True)),
        estimates=tuple(
            Estimate(n, total * d, 4 * e, e, i)
            for i, (n, d, e) in enumerate(
                sorted(
                    [
                        *zip(names, depths, elements, strict=True),
                        *((f"block {k}", k / 24, 150_528 // (1 + k % 7)) for k in range(1, 24)),
                    ],
                    key=lambda one: one[1],
                )
            )
        ),
        whole=Whole(timing(total), tuple(Batch(n, total * (0.4 + 0.6 * n)) for n in (1, 2, 4)), int(1e7), int(9e7)),
        encodings=tuple(
            Encoding("jpeg", q, sizes(b), timing(3 * speed), timing(2 * speed), agreement=a)
            for q, b, a in ((50, 9000, 0.9), (75, 15000, 0.95), (90, 28000, 0.99))
        ),
        transport=Transport(1.2, 0.01, "a frame that computes nothing, on loopback"),
        reply_bytes=60,
        notes=("The processor got slower after 40 s: it throttles.",),
    )


def situation(names: tuple[str, ...] = NAMES) -> Situation:
    """A board, a server forty times as fast, 5 Mbit/s and 40 ms, at most two points of accuracy."""
    return Situation(
        device=profile("board <i>", 1.0, names),
        server=profile("server", 0.025, names),
        link=Link(5e6, 0.04, jitter_s=0.002, loss=0.001),
        constraints=Constraints(max_accuracy_drop=2.0),
        conditions=Conditions(),
    )
