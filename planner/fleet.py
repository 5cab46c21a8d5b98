"""Classes of devices: which point each takes, from one bundle, and how many devices one server carries.

Every cut has a queue of its own at the server (`server/batcher.py`), and all queues share its processor. A queue is
solved as a bulk-service queue (`queueing.py`) on a server that is slower by what the others take of its time; decoding
is counted as if it did not overlap with the tail, which it does where the processor has cores to spare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..runtime.errors import UsageError
from .choose import Constraints, Objective, Plan, plan
from .link import Link
from .pair import Pair
from .predict import Conditions
from .profile import Batch, Profile
from .queueing import BatchCurve, Wait, solve

_PRECISION = 0.01
_FULLEST = 0.95
"""Of the server's time that is planned with at most: beyond it every hiccup becomes a queue."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Devices of one kind."""

    name: str
    profile: Profile
    link: Link
    fps: float = 1.0
    """Frames a second that each of them sends."""
    share: float = 1.0
    """Of the fleet, beside the other kinds' shares."""

    def __post_init__(self) -> None:
        if not self.fps > 0 or not self.share > 0:
            raise UsageError(f"devices send more than 0 frames a second and are more than 0 of a fleet, not {self}")


@dataclass(frozen=True, slots=True)
class Assigned:
    """A kind and its plan."""

    kind: Kind
    plan: Plan


@dataclass(frozen=True, slots=True)
class Queue:
    """One queue of the server's at the fleet's size."""

    name: str | None
    """The cut; None for the whole model."""
    fps: float
    """Frames a second that come to it."""
    utilisation: float
    """Share of the server's time that it takes."""
    mean_ms: float
    """Of a frame at the server: wait, decoding and tail."""
    p99_ms: float
    mean_batch: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one server carries."""

    devices: float
    """Of all kinds together, by their shares; inf where no kind needs the server."""
    by_kind: dict[str, float]
    fps: float
    """Frames a second that the server answers then."""
    queues: tuple[Queue, ...]
    p99_ms: dict[str, float]
    """From the input to the answer, by kind."""
    bound_ms: float


def assign(
    kinds: Sequence[Kind],
    server: Profile | None = None,
    constraints: Constraints | None = None,
    objective: Objective = "latency",
    conditions: Conditions | None = None,
) -> tuple[Assigned, ...]:
    """The best point of every kind.

    Args:
        kinds: the devices, each with its own profile and link.
        server: its profile; each device's own where None.
        constraints: what must be kept, by every kind.
        objective: what counts.
        conditions: scales, load and powers.

    Raises:
        ProfileError: profiles of several models.
        NothingPlannedError: a kind that can take no point at all.
    """
    return tuple(
        Assigned(kind, plan(kind.profile, server, kind.link, constraints, objective, conditions)) for kind in kinds
    )


def cuts_of(assigned: Sequence[Assigned]) -> tuple[str, ...]:
    """The cuts that the bundle for these devices has to have, in the order of the kinds."""
    named = (one.plan.best.point.cut for one in assigned)
    return tuple(dict.fromkeys(cut for cut in named if cut is not None))


def capacity(
    assigned: Sequence[Assigned],
    server: Profile | None,
    bound_ms: float,
    conditions: Conditions | None = None,
    *,
    share: float = 0.99,
) -> Capacity:
    """How many devices one server carries.

    Args:
        assigned: kinds with their points.
        server: its profile; each device's own where None.
        bound_ms: on the latency, from the input to the answer.
        conditions: the server's scale counts.
        share: of each kind's frames that must be answered within the bound.

    Raises:
        UsageError: a bound that is none, or one that a kind misses with the server to itself.
    """
    if not bound_ms > 0:
        raise UsageError(f"a bound on the latency is more than 0 ms, not {bound_ms}")
    model = _Model(assigned, server, conditions or Conditions(), share)
    if not model.loads:
        return Capacity(
            float("inf"), dict.fromkeys((a.kind.name for a in assigned), float("inf")), 0.0, (), {}, bound_ms
        )
    alone = model.p99_ms(model.waits(0.0))
    late = {name: ms for name, ms in alone.items() if ms > bound_ms}
    if late:
        worst = max(late, key=lambda name: late[name])
        raise UsageError(
            f"{worst} takes {late[worst]:.1f} ms with the server to itself: no number of devices keeps {bound_ms:g} ms"
        )
    low, high = 0.0, model.most_devices
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        low, high = (middle, high) if model.keeps(middle, bound_ms) else (low, middle)
    waits = model.waits(low)
    return Capacity(
        devices=low,
        by_kind={one.kind.name: low * weight for one, weight in model.weighted()},
        fps=sum(queue.fps for queue in model.queues(low, waits)),
        queues=tuple(model.queues(low, waits)),
        p99_ms=model.p99_ms(waits),
        bound_ms=bound_ms,
    )


@dataclass(frozen=True, slots=True)
class _Load:
    """What one queue gets from one device of the whole mix."""

    curve: BatchCurve
    fps: float

    @property
    def busy(self) -> float:
        """Share of the server's time that it takes, in full batches."""
        return self.fps / self.curve.most_fps


class _Model:
    """The server's queues as functions of the fleet's size."""

    def __init__(
        self, assigned: Sequence[Assigned], server: Profile | None, conditions: Conditions, share: float
    ) -> None:
        self.assigned = assigned
        self.share = share
        self.loads: dict[str | None, _Load] = {}
        for one, weight in self.weighted():
            point = one.plan.best.point
            if point.mode == "local":
                continue
            pair = Pair.of(one.kind.profile, server or one.kind.profile)
            batches, decode_ms = _service(pair, one.plan)
            curve = BatchCurve.of(batches, conditions.server_scale, overhead_s=decode_ms / 1000)
            known = self.loads.get(point.cut)
            fps = weight * one.kind.fps + (known.fps if known else 0.0)
            self.loads[point.cut] = _Load(known.curve if known else curve, fps)

    def weighted(self) -> list[tuple[Assigned, float]]:
        """Kinds with their shares, which add up to 1."""
        total = sum(one.kind.share for one in self.assigned)
        return [(one, one.kind.share / total) for one in self.assigned]

    @property
    def most_devices(self) -> float:
        """That keep the server as busy as it may be."""
        return _FULLEST / sum(load.busy for load in self.loads.values())

    def waits(self, devices: float) -> Mapping[str | None, Wait]:
        """Of every queue."""
        busy = {name: devices * load.busy for name, load in self.loads.items()}
        found = {}
        for name, load in self.loads.items():
            others = sum(busy.values()) - busy[name]
            found[name] = solve(load.curve.slowed(1 - others), devices * load.fps)
        return found

    def p99_ms(self, waits: Mapping[str | None, Wait]) -> dict[str, float]:
        """Of every kind that sends anything, from input to answer."""
        found = {}
        for one in self.assigned:
            best = one.plan.best
            if best.point.mode != "local":
                stages = best.stages
                elsewhere = stages.total - stages.queue - stages.decode - stages.tail
                found[one.kind.name] = elsewhere + 1000 * waits[best.point.cut].quantile_s(self.share)
        return found

    def keeps(self, devices: float, bound_ms: float) -> bool:
        """Whether every kind is within the bound."""
        return all(ms <= bound_ms for ms in self.p99_ms(self.waits(devices)).values())

    def queues(self, devices: float, waits: Mapping[str | None, Wait]) -> list[Queue]:
        """Figures of every queue."""
        return [
            Queue(
                name=name,
                fps=devices * load.fps,
                utilisation=devices * load.busy,
                mean_ms=1000 * waits[name].mean_s,
                p99_ms=1000 * waits[name].quantile_s(self.share),
                mean_batch=waits[name].mean_batch,
            )
            for name, load in self.loads.items()
        ]


def _service(pair: Pair, made: Plan) -> tuple[Sequence[Batch], float]:
    """Batches of the tail that a plan uses, and milliseconds of decoding one frame for it."""
    point = made.best.point
    if point.mode == "offload":
        return pair.server_whole.batches, made.best.stages.decode
    return next(cut.tail_batches for cut in pair.cuts() if cut.name == point.cut), made.best.stages.decode
