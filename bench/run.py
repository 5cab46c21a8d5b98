"""All steps of a bench, and the search for the highest rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..device.local import LocalModel
from ..runtime.bundle import Bundle
from ..runtime.errors import NarrowsError, ServerUnavailableError, ShapeError, UsageError, from_code
from ..runtime.manifest import Half, Manifest
from ..runtime.point import Point
from ..server_process import ServerProcess, server_process
from .inputs import read_inputs
from .options import BenchOptions, Load, MaxRate
from .result import BenchResult, Found, Step
from .step import INTERRUPTED, Bench, Ran

Progress = Callable[[str, int, int], None]
"""Called with (what is under way, seconds done, seconds it takes at most)."""

_KEPT_SHARE = 0.95
"""Of what arrives, that has to be answered for a rate to count as kept."""
_DOUBLINGS = 4
_LOWEST = 1 / 64
"""Of the rate that a closed loop reaches."""


def run(options: BenchOptions, *, find: MaxRate | None = None, progress: Progress) -> BenchResult:
    """Measure every point under every load; then, where asked, find each point's highest rate.

    A server that dies, an interruption (Ctrl-C) and a point that is not answered at all end it; what was measured until
    then is in the result, and `ended` says why it is not all.

    Args:
        options: what to measure.
        find: the promise that the highest rate has to keep; `options.loads` are measured first, and may be none.
        progress: told how far each step is.

    Raises:
        NarrowsError: what ends it before anything was measured: no such cut, nobody at the address, another bundle.
    """
    halves = (Half.DEVICE,) if options.server is not None else tuple(Half)
    bundle = Bundle.open(options.bundle, *halves)
    points = [_checked(point, bundle.manifest) for point in options.points or (Point("split"),)]
    kept = _Kept(options, bundle, progress)
    with _server(options) as (address, alive):
        bench = Bench(options, address, alive, _truth(bundle, options))
        try:
            for point in points:
                for load in options.loads:
                    kept.step(bench, point, load)
                if find is not None:
                    kept.found.append(_search(kept, bench, point, find))
        except KeyboardInterrupt:
            kept.ended = INTERRUPTED
        except _TroubleError as trouble:
            kept.ended = str(trouble)
        except NarrowsError as error:
            if not kept.steps:
                raise
            kept.ended = f"{error.code}: {error}"
    return kept.result()


class _TroubleError(Exception):
    """A step that was not measured to its end, after which no other would be."""


class _Kept:
    """What was measured so far."""

    def __init__(self, options: BenchOptions, bundle: Bundle, progress: Progress) -> None:
        self._options, self._bundle, self._progress = options, bundle, progress
        self._inputs = 0
        self._meter: str | None = None
        self.steps: list[Step] = []
        self.found: list[Found] = []
        self.ended = ""

    def step(self, bench: Bench, point: Point, load: Load) -> Step:
        """Measure one step, and keep it.

        Raises:
            _TroubleError: it came to nothing, and so would those after it.
            NarrowsError: it could not begin.
        """
        name = f"{point}, {load}"
        ran: Ran = bench.run(point, load, lambda now, most: self._progress(name, round(now * 10), round(most * 10)))
        step = ran.step
        self._inputs, self._meter = ran.inputs, ran.meter
        answered = "ok" in step.outcomes
        if not answered and step.trouble == INTERRUPTED:
            raise _TroubleError(INTERRUPTED)
        if not answered and not self.steps:
            raise _unanswered(step)
        self.steps.append(step)
        if step.trouble or not answered:
            raise _TroubleError(step.trouble or f"{name}: {_unanswered(step)}")
        return step

    def result(self) -> BenchResult:
        """All of it."""
        options = self._options
        return BenchResult(
            bundle=self._bundle.manifest.name,
            digest=self._bundle.digest,
            server=options.server or "a process on this machine",
            link=options.link,
            inputs=self._inputs,
            golden=options.source is None,
            meter=self._meter,
            steps=tuple(self.steps),
            found=tuple(self.found),
            ended=self.ended,
        )


def _unanswered(step: Step) -> NarrowsError:
    """What to say of a step in which no frame was answered."""
    if step.trouble or not step.outcomes:
        return ServerUnavailableError(step.trouble or f"no frame has ended within {step.seconds:.0f} s")
    code, count = max(step.outcomes.items(), key=lambda item: item[1])
    return from_code(code, f"no frame was answered; {count} of {step.frames} ended in the error {code!r}")


def keeps(step: Step, promise: MaxRate) -> bool:
    """Whether a step keeps the promise: p99 within its bound, everything answered, and no falling behind."""
    latency = step.stages.get("latency")
    if latency is None or step.errors or step.throughput < _KEPT_SHARE * step.offered:
        return False
    worst = latency.p99 if latency.p99 is not None else latency.p90
    return worst is not None and worst <= promise.p99_ms


def _search(kept: _Kept, bench: Bench, point: Point, promise: MaxRate) -> Found:
    """The highest rate that keeps a promise, by bisection between one that does and one that does not."""
    capacity = kept.step(bench, point, Load(concurrency=bench.options.window)).throughput
    good, bad, rate = 0.0, float("inf"), capacity
    while bad - good > promise.tolerance * good and rate >= _LOWEST * capacity:
        if keeps(kept.step(bench, point, Load(rate=rate)), promise):
            good = rate
        else:
            bad = rate
        if bad < float("inf"):
            rate = (good + bad) / 2
        elif good >= 2**_DOUBLINGS * capacity:
            break
        else:
            rate = 2 * good
    return Found(point, promise.p99_ms, good or None, None if bad == float("inf") else bad)


def _checked(point: Point, manifest: Manifest) -> Point:
    """The point with the names that were left out.

    Raises:
        QualityError: no such cut, or no such quality.
        UsageError: the bundle cannot do this.
    """
    if point.mode == "local":
        if manifest.local is None or Half.DEVICE not in manifest.files[manifest.local].halves:
            raise UsageError(f"{manifest.name!r} has no whole model for the device; cut it again with --local")
        return point
    if point.mode == "offload":
        if manifest.local is None or Half.SERVER not in manifest.files[manifest.local].halves:
            raise UsageError(f"{manifest.name!r} has no whole model for the server; cut it again with --offload")
        return point
    cut = manifest.cut(point.cut)[1]
    quality = len(cut.qualities) - 1 if point.quality is None else point.quality
    cut.check_quality(quality)
    return Point("split", cut.name, quality)


@contextmanager
def _server(options: BenchOptions) -> Iterator[tuple[str, Callable[[], str]]]:
    """Where the server is, and what says whether it is gone."""
    if options.server is not None:
        yield options.server, lambda: ""
        return
    with server_process(Path(options.bundle)) as server:
        yield server.address, lambda: _gone(server)


def _gone(server: ServerProcess) -> str:
    return "" if server.ended is None else f"the server process ended with {server.ended} in mid-bench"


def _truth(bundle: Bundle, options: BenchOptions) -> Sequence[int | None]:
    """The whole model's best class of every input; empty where it is not here, or is no classifier."""
    manifest = bundle.manifest
    classifier = [output.tensor.name for output in manifest.outputs if output.kind != "tensor"]
    if manifest.local is None or not bundle.file(manifest.local).exists() or not classifier:
        return ()
    whole = LocalModel(bundle, options.session)
    try:
        inputs = read_inputs(bundle, options.source)
        return [int(np.argmax(whole.run(item.arrays)[classifier[0]])) for item in inputs]
    except ShapeError as error:
        raise UsageError(f"the whole model does not take these inputs: {error}") from None
