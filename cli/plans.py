"""How profiles and plans are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.table import Table

from .tables import out, print_json, table

if TYPE_CHECKING:
    from ..planner.choose import Constraints, Plan
    from ..planner.fleet import Assigned, Capacity
    from ..planner.link import Link
    from ..planner.predict import Prediction
    from ..planner.profile import Profile


@dataclass(frozen=True, slots=True)
class Said:
    """What is planned over one link."""

    link: str
    """As it was given."""
    assigned: tuple[Assigned, ...]
    capacity: Capacity | None


def names_of(profiles: Sequence[Profile]) -> list[str]:
    """A name for each, told apart where machines are called the same."""
    names = [profile.machine.name for profile in profiles]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def profile(made: Profile, path: Path, *, as_json: bool) -> None:
    """What `narrows profile` measured."""
    if as_json:
        print_json(msgspec.to_builtins(made))
        return
    console = out()
    shown = table(None, "cut", "head, ms", "tail, ms", "coded bytes", "agreement", "encode, ms", "memory, MB")
    for cut in made.cuts:
        sizes = [quality.payload.p50 for quality in cut.qualities]
        agreements = [quality.agreement for quality in cut.qualities if quality.agreement is not None]
        encodes = [quality.encode.ms for quality in cut.qualities if quality.encode is not None]
        shown.add_row(
            cut.name,
            _ms(cut.head.ms if cut.head else None),
            _ms(cut.tail.ms if cut.tail else None),
            _range(sizes, "{:,.0f}"),
            _range([100 * a for a in agreements], "{:.1f}") + " %" if agreements else "–",
            _range(encodes, "{:.2f}"),
            f"{cut.peak_memory_bytes / 1e6:.0f}" if cut.peak_memory_bytes is not None else "–",
        )
    console.print(shown)
    if made.whole.run is not None:
        console.print(f"the whole model: {made.whole.run.ms:.2f} ms")
    if made.transport is not None:
        console.print(f"transport: {made.transport.fixed_ms:.2f} ms a frame ({made.transport.how})", markup=False)
    for note in made.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    pictures = f"{made.frames} pictures" if made.frames else "no pictures of yours"
    console.print(f"{path}  {made.model}  {made.digest[:12]}  on {made.machine.name}, {pictures}", markup=False)


def plan(said: Sequence[Said], constraints: Constraints, *, as_json: bool) -> None:
    """What `narrows plan` found."""
    if as_json:
        print_json(finite([_json(one) for one in said]))
        return
    console = out()
    for one in said:
        for assigned in one.assigned:
            console.print(_sentence(one, assigned), markup=False, soft_wrap=True)
            console.print(_reason(assigned.plan), markup=False, soft_wrap=True)
            if (coarse := _coarse(assigned, constraints)) is not None:
                console.print(coarse, markup=False, soft_wrap=True)
            if not assigned.plan.feasible:
                console.print(_miss(assigned.plan, constraints), markup=False, soft_wrap=True)
            console.print(_front(assigned.plan))
        if one.capacity is not None:
            for line in _capacity(one.capacity):
                console.print(line, markup=False, soft_wrap=True)


def _sentence(said: Said, assigned: Assigned) -> str:
    best = assigned.plan.best
    what = f"{best.point}: {best.latency_ms:.1f} ms (few frames above {best.high_ms:.1f})"
    return f"{assigned.kind.name} over {describe(assigned.kind.link)}: {what}, {_costs(best)}"


def describe(link: Link) -> str:
    """A link for people."""
    if not link.passes:
        return "a link on which nothing passes"
    rate = "no limit" if math.isinf(link.bps) else f"{link.bps / 1e6:g} Mbit/s"
    extras = [f"{link.jitter_s * 1000:g} ms jitter"] * bool(link.jitter_s) + [f"{link.loss:.1%} lost"] * bool(link.loss)
    return ", ".join([rate, f"{link.rtt_s * 1000:g} ms round trip", *extras])


def _costs(one: Prediction) -> str:
    parts = [f"{one.wire_bytes:,.0f} bytes", f"{one.throughput_fps:,.1f} frames/s"]
    parts.append(f"{one.energy_j:.3g} J" + ("" if one.energy_measured else " by a model"))
    if one.accuracy is not None:
        where = " on held-out pictures" if one.drop_by == "held-out accuracy" else ""
        parts.append(f"accuracy {one.accuracy:.1%}{where}")
    elif one.agreement is not None:
        parts.append(f"agreement {one.agreement:.1%}")
    return ", ".join(parts)


def _reason(plan: Plan) -> str:
    """The best of each way, so that everyone sees why."""
    best: dict[str, Prediction] = {}
    for one in sorted(plan.predictions, key=lambda p: p.latency_ms):
        best.setdefault(one.point.mode, one)
    ways = "; ".join(f"{one.point} {one.latency_ms:.1f} ms" for one in best.values())
    advice = "split" if plan.split else "do not split"
    return f"  {advice}; the fastest of each way: {ways}"


def _coarse(assigned: Assigned, constraints: Constraints) -> str | None:
    """That too few pictures were measured to tell such a drop from none."""
    frames, allowed = assigned.kind.profile.frames, constraints.max_accuracy_drop
    if allowed is None or not frames or 100 / frames <= max(allowed, 0.1):
        return None
    if assigned.plan.best.drop_by == "held-out accuracy":
        return None
    return (
        f"  agreement was seen on {frames} pictures, one of them is {100 / frames:.1f} points: profile more (--frames)"
    )


def _miss(plan: Plan, constraints: Constraints) -> str:
    best = plan.best
    drop = "unknown" if best.accuracy_drop is None else f"{best.accuracy_drop:.2f} points"
    found = {
        "latency": f"{best.latency_ms:.1f} ms, {constraints.deadline_ms:g} allowed" if constraints.deadline_ms else "",
        "accuracy": f"a drop of {drop}, {constraints.max_accuracy_drop} allowed",
        "throughput": f"{best.throughput_fps:.1f} frames/s, {constraints.min_fps} wanted",
        "bytes": f"{best.wire_bytes:,.0f} bytes, {constraints.max_bytes} allowed",
        "energy": f"{best.energy_j:.3g} J, {constraints.max_energy_j} allowed",
        "memory": f"{(best.memory_bytes or 0) / 1e6:.0f} MB, {(constraints.max_memory_bytes or 0) / 1e6:.0f} allowed",
    }
    return "  no point keeps every bound; this is the nearest miss: " + "; ".join(found[name] for name in plan.misses)


def _front(plan: Plan) -> Table:
    shown = table(
        None, "  nothing beats", "ms", "device", "link", "server", "bytes", "frames/s", "J", "drop, points", "by"
    )
    for one in plan.front:
        stages = one.stages
        mark = "▸ " if one == plan.best else "  "
        shown.add_row(
            f"{mark}{one.point}",
            f"{one.latency_ms:.1f}",
            f"{stages.device:.1f}",
            f"{stages.link:.1f}",
            f"{stages.queue + stages.decode + stages.tail:.1f}",
            f"{one.wire_bytes:,.0f}",
            f"{one.throughput_fps:,.1f}",
            f"{one.energy_j:.3g}",
            "–" if one.accuracy_drop is None else f"{one.accuracy_drop:.2f}",
            one.drop_by or "–",
        )
    return shown


def _capacity(found: Capacity) -> list[str]:
    if math.isinf(found.devices):
        return ["one server carries any number of these devices: none of them needs it"]
    kinds = ", ".join(f"{math.floor(count):,} × {name}" for name, count in found.by_kind.items())
    lines = [f"one server carries {math.floor(found.devices):,} of these devices ({kinds}), {found.fps:,.1f} frames/s,"]
    lines[0] += f" with 99 % of answers within {found.bound_ms:g} ms"
    lines += [
        f"  {queue.name or 'whole model'}: busy {queue.utilisation:.0%}, batches of {queue.mean_batch:.1f}, "
        f"{queue.mean_ms:.1f} ms at the server on average, 99 % within {queue.p99_ms:.1f} ms"
        for queue in found.queues
    ]
    return lines


def _json(said: Said) -> dict[str, Any]:
    return {
        "link": said.link,
        "plans": [
            {
                "device": one.kind.name,
                "link": msgspec.to_builtins(one.kind.link),
                "feasible": one.plan.feasible,
                "split": one.plan.split,
                "objective": one.plan.objective,
                "best": prediction(one.plan.best),
                "misses": one.plan.misses,
                "front": [prediction(each) for each in one.plan.front],
                "points": [prediction(each) for each in one.plan.predictions],
            }
            for one in said.assigned
        ],
        "capacity": None if said.capacity is None else msgspec.to_builtins(said.capacity),
    }


def prediction(one: Prediction) -> dict[str, Any]:
    """A prediction as plain values."""
    return {**msgspec.to_builtins(one), "name": str(one.point), "link_ms": one.stages.link}


def finite(value: Any) -> Any:
    """The same with None for what is not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _range(values: Sequence[float], form: str) -> str:
    if not values:
        return "–"
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low}…{high}"
