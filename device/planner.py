"""Between the stages, which say how long everything took, and the policy, which has to know how long it will take."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from ..runtime.cost import PowerModel, frame_wire_bytes
from ..runtime.manifest import Cut
from ..runtime.point import LOCAL, ON_DEVICE, Point
from ..runtime.rate import SizeModel, highest_fitting
from .breaker import Breaker
from .early import EarlyEstimate
from .estimates import Duration, LinkEstimate
from .policies import Candidate, Choice, Policy, View


class Planner:
    """Keeps the estimates, asks the policy. Safe to use from several threads."""

    def __init__(
        self,
        policy: Policy,
        cuts: Sequence[Cut],
        power: PowerModel | None = None,
        offload: tuple[Point, float] | None = None,
        *,
        exit_answers: bool = False,
        exit_confidence: float | None = None,
    ) -> None:
        """Begin with what the bundle's own table says.

        Args:
            policy: chooses.
            cuts: those whose heads are loaded.
            power: of this device.
            offload: the point at which the input itself is sent, and a first guess of its bytes.
            exit_answers: an early exit may answer in a server's place, whatever its confidence.
            exit_confidence: that of a frame that is not sent; None where the exit is not asked before.
        """
        self._policy = policy
        self._power = power or PowerModel()
        self._lock = threading.Lock()
        names: list[str | None] = [cut.name for cut in cuts]
        self._head = {name: Duration() for name in names}
        self._server = {name: Duration() for name in (*names, None)}
        points = [(Point("split", cut.name, q), cut.qualities[q]) for cut in cuts for q in range(len(cut.qualities))]
        self._remote = [point for point, _ in points]
        self._accuracy = {point: 1.0 if q.agreement is None else q.agreement for point, q in points}
        self._sizes = {cut.name: SizeModel(tuple(max(1.0, q.payload_bytes) for q in cut.qualities)) for cut in cuts}
        self._picture_bytes = 0.0
        if offload is not None:
            self._remote.append(offload[0])
            self._accuracy[offload[0]], self._picture_bytes = 1.0, offload[1]
        self._encode = {point: Duration() for point in self._remote}
        self._exits = {cut.name: EarlyEstimate(cut.exit, exit_confidence) for cut in cuts if cut.exit}
        self._exit_answers = exit_answers
        self._asks_first = exit_confidence is not None
        self._heard_s = time.monotonic()
        self._unheard_frames = 0
        self._tried_s = 0.0
        self.probes = 0
        """Frames that were sent only to hear of the link."""
        self.last_point: Point | None = None
        """Of the last frame."""
        self.local: Duration | None = None
        """Of the whole model on the device; None where it has none."""
        self.link = LinkEstimate()
        self.link_spread = Duration()
        self.breaker = Breaker()

    def choose(
        self,
        preferred: Point,
        deadline_s: float | None,
        down_s: float,
        oldest_s: float,
        cap_bytes: int | None = None,
    ) -> Choice:
        """What to do with the next frame.

        Args:
            preferred: the user's own split point.
            deadline_s: from its input to its answer.
            down_s: for how long there has been no connection.
            oldest_s: for how long the oldest frame on the link has been waiting.
            cap_bytes: most bytes of a frame's payloads.
        """
        with self._lock:
            now = time.monotonic()
            grace_s = deadline_s / 4 if deadline_s is not None else 1.0
            sendable = down_s <= grace_s and self.breaker.allows(now)
            alone = self._alone()
            remote = self._remote if sendable or alone is None else []
            view = View(
                preferred=preferred if remote or alone is None else alone,
                candidates=lambda: self._candidates(remote, oldest_s),
                deadline_s=deadline_s,
                unheard_s=now - max(self._heard_s, self._tried_s),
                unheard_frames=self._unheard_frames,
            )
            choice = self._policy.choose(view)
            choice = replace(choice, point=self._within(choice.point, cap_bytes))
            self.last_point = choice.point
            self._miss_all_but(choice)
            self.probes += choice.probe is not None
            if choice.point.mode not in ON_DEVICE or choice.probe is not None:
                self.breaker.sent(now)
                self._tried_s, self._unheard_frames = now, 0
            else:
                self._unheard_frames += 1
            return choice

    def candidates(self) -> list[Candidate]:
        """Every point with what is expected of it just now."""
        with self._lock:
            return self._candidates(self._remote, 0.0)

    def head_took(self, cut: str, duration_s: float) -> None:
        """A head has run."""
        with self._lock:
            self._head[cut].observe(duration_s)

    def coder_took(self, point: Point, duration_s: float, payload_bytes: int) -> None:
        """A frame was coded."""
        with self._lock:
            self._encode[point].observe(duration_s)
            if point.cut is None or point.quality is None:
                self._picture_bytes += (payload_bytes - self._picture_bytes) / 4
            else:
                self._sizes[point.cut] = self._sizes[point.cut].after(point.quality, payload_bytes)

    def payload_bytes(self, cut: str) -> list[float]:
        """What the next frame will probably take at each quality of a cut."""
        with self._lock:
            return self._sizes[cut].expected()

    def exit_took(self, cut: str, duration_s: float, *, sent: bool | None = None) -> None:
        """An early exit has run.

        Args:
            cut: whose.
            duration_s: how long it took.
            sent: whether its frame is sent all the same; None where that was not the question.
        """
        with self._lock:
            self._exits[cut].duration.observe(duration_s)
            if sent is not None:
                self._exits[cut].sent(sent)

    def rescue_s(self, cut: str | None, *, whole: bool) -> float:
        """How long an answer on the device takes, from the upper end of what was seen.

        Args:
            cut: whose early exit.
            whole: by the whole model instead.
        """
        with self._lock:
            if whole or cut not in self._exits:
                return self.local.upper_s if self.local is not None else 0.0
            return self._exits[cut].duration.upper_s

    def local_took(self, duration_s: float) -> None:
        """The whole model has run on the device."""
        with self._lock:
            if self.local is not None:
                self.local.observe(duration_s)

    def answered(self, cut: str | None, sent_bytes: int, link_s: float, server_s: float, *, in_time: bool) -> None:
        """A reply came.

        Args:
            cut: whose tail made it; None where the whole model did.
            sent_bytes: bytes on the wire of the frame.
            link_s: from sending to reply, without the server's time.
            server_s: the server's own time.
            in_time: before its frame's deadline.
        """
        with self._lock:
            now = time.monotonic()
            self.link_spread.observe(abs(link_s - self.link.expected_s(sent_bytes)))
            self.link.observe(sent_bytes, link_s)
            self._server[cut].observe(server_s)
            self._heard_s = now
            if in_time:
                self.breaker.succeeded()
            else:
                self.breaker.failed(now)

    def unanswered(self, sent_bytes: int, waited_s: float) -> None:
        """A frame's time is over and no reply came."""
        with self._lock:
            self.link.observe_at_least(max(1, sent_bytes), waited_s)
            self.breaker.failed(time.monotonic())

    def _candidates(self, remote: Sequence[Point], oldest_s: float) -> list[Candidate]:
        whole = [] if self.local is None else [self._on_device(LOCAL, self.local, 1.0)]
        exits = [self._exited(cut, early) for cut, early in self._exits.items() if self._exit_answers]
        return [*(self._sent(point, oldest_s) for point in remote), *exits, *whole]

    def _miss_all_but(self, choice: Choice) -> None:
        """What this frame brings no news of."""
        points = {choice.point, choice.probe}
        cuts = {point.cut for point in points if point is not None and point.mode not in ON_DEVICE}
        unmeasured = [duration for point, duration in self._encode.items() if point not in points]
        for of_cut in (self._head, self._server):
            unmeasured += [duration for cut, duration in of_cut.items() if cut not in cuts]
        for duration in unmeasured:
            duration.miss()

    def _alone(self) -> Point | None:
        """What the device can answer with when nothing can be sent."""
        if self.local is not None:
            return LOCAL
        return next((early.point(cut) for cut, early in self._exits.items() if self._exit_answers), None)

    def _within(self, point: Point, cap_bytes: int | None) -> Point:
        """The point, or its cut's highest quality below it that will probably keep the cap."""
        if cap_bytes is None or point.mode != "split" or point.cut is None or point.quality is None:
            return point
        fitting = highest_fitting(self._sizes[point.cut].expected()[: point.quality + 1], cap_bytes)
        return replace(point, quality=fitting or 0)

    def _payload_bytes(self, point: Point) -> float:
        if point.cut is None or point.quality is None:
            return self._picture_bytes
        return self._sizes[point.cut].expected()[point.quality]

    def _sent(self, point: Point, oldest_s: float) -> Candidate:
        sent = frame_wire_bytes(self._payload_bytes(point))
        head, encode = self._head.get(point.cut, Duration()), self._encode[point]
        server = self._server[point.cut]
        link_s = self.link.expected_s(sent)
        # A frame that has been out for longer than any should be says that the link is slower than it was.
        link_s += max(0.0, oldest_s - link_s - server.expected_s - 3 * self.link_spread.mean_s)
        compute_s = head.expected_s + encode.expected_s
        whole_way = Candidate(
            point,
            latency_s=compute_s + link_s + server.expected_s,
            device_s=compute_s,
            server_s=server.expected_s,
            spread_s=head.expected_spread_s
            + encode.expected_spread_s
            + server.expected_spread_s
            + self.link_spread.mean_s,
            wire_bytes=sent,
            accuracy=self._accuracy[point],
            energy_j=self._power.energy_j(compute_s, link_s + server.expected_s, sent * self.link.byte_s),
        )
        if not self._asks_first or point.cut not in self._exits:
            return whole_way
        early = self._exits[point.cut]
        return early.before(whole_way, self._exited(point.cut, early))

    def _exited(self, cut: str, early: EarlyEstimate) -> Candidate:
        head = self._head[cut]
        both = Duration(head.mean_s + early.duration.mean_s)
        both.spread_s = head.spread_s + early.duration.spread_s
        point = early.point(cut)
        assert point.quality is not None
        return self._on_device(point, both, early.exit.qualities[point.quality].agreement)

    def _on_device(self, point: Point, took: Duration, accuracy: float) -> Candidate:
        return Candidate(
            point,
            latency_s=took.mean_s,
            device_s=took.mean_s,
            server_s=0.0,
            spread_s=took.spread_s,
            wire_bytes=0.0,
            accuracy=accuracy,
            energy_j=self._power.energy_j(took.mean_s),
        )
