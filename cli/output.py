"""How the command line shows things: tables for people, JSON for programs, progress on a terminal only."""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from .tables import err as _err
from .tables import out as _out
from .tables import print_json as _print_json
from .tables import table as _table

if TYPE_CHECKING:
    from ..demo import Report
    from ..device import Outcome, Prediction
    from ..doctor import Finding
    from ..partitioner import CutPoint
    from ..partitioner.training import Report as TrainReport
    from ..runtime.bundle import Bundle
    from ..server import Listening

_MARKS = {True: "[green]ok[/]", False: "[red]broken[/]", None: ""}


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar a stage on a terminal, a line a stage elsewhere. Yields what takes (stage, steps done, steps in all)."""
    if not sys.stderr.isatty():
        told: set[str] = set()

        def tell(stage: str, _done: int, _total: int) -> None:
            if stage not in told:
                told.add(stage)
                print(f"{stage} …", file=sys.stderr, flush=True)

        yield tell
        return
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    left = TextColumn("left")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), left, TimeRemainingColumn())
    with Progress(*columns, console=_err()) as bar:
        tasks: dict[str, TaskID] = {}

        def step(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield step


def step(text: str) -> None:
    """A step of something that takes a while."""
    print(text, flush=True)


def waiting(text: str) -> None:
    """What is being waited for, to a person before a screen."""
    if sys.stderr.isatty():
        _err().print(f"{text} …", markup=False)


def findings(found: Sequence[Finding], *, as_json: bool) -> None:
    """What `narrows doctor` found."""
    if as_json:
        _print_json([asdict(finding) for finding in found])
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in found:
        lacking = finding.ok is False or (finding.ok is None and finding.advice)
        advice = f"→ {finding.advice}" if lacking else ""
        table.add_row(finding.what, _MARKS[finding.ok], escape(finding.found), escape(advice))
    _out().print(table)


def cuts(found: Sequence[CutPoint], *, show_all: bool, as_json: bool) -> None:
    """What `narrows cuts` found."""
    shown = [cut for cut in found if show_all or cut.pareto]
    if as_json:
        _print_json([asdict(cut) | {"name": cut.name, "raw_bytes": cut.raw_bytes} for cut in shown])
        return
    console = _out()
    for cut in shown:
        # The name has a line of its own, whole: it is there to be copied.
        flops = cut.head_flops / max(1, cut.head_flops + cut.tail_flops)
        shapes = ", ".join("×".join(map(str, tensor.shape)) for tensor in cut.tensors)
        console.print(cut.name, markup=False, soft_wrap=True, style="bold")
        console.print(
            f"    {shapes:<20} {cut.symbol_bytes:>11,} bytes at 8 bits   {flops:>6.1%} of the work   "
            f"{cut.head_params:>11,} parameters",
            markup=False,
            soft_wrap=True,
        )
    console.print("\nBest first: few bytes and little work before the cut. Names with ; or spaces want quotes.")
    if len(shown) < len(found):
        console.print(f"{len(found) - len(shown)} cuts that another beats in both are left out; --all lists them.")


def bundle(made: Bundle, *, replaced: bool, as_json: bool) -> None:
    """What `narrows cut` made."""
    manifest = made.manifest
    if as_json:
        cuts = [{"name": cut.name, "qualities": [asdict(q) for q in cut.qualities]} for cut in manifest.cuts]
        _print_json({"bundle": str(made.root), "digest": made.digest, "name": manifest.name, "cuts": cuts})
        return
    for cut in manifest.cuts:
        shapes = ", ".join("×".join("?" if d is None else str(d) for d in t.symbols.shape) for t in cut.crossing)
        _out().print(f"{cut.name}  {shapes}", markup=False, soft_wrap=True)
        table = _table(None, "quality", "bits", "payload, bytes", "same answer", "max deviation")
        for i, quality in enumerate(cut.qualities):
            agreement = "" if quality.agreement is None else f"{quality.agreement:.1%}"
            table.add_row(
                str(i),
                f"{quality.bits:.3g}",
                f"{quality.payload_bytes:,.0f}",
                agreement,
                f"{quality.max_deviation:.3g}",
            )
        _out().print(table)
    _out().print(
        "Measured against the uncut model on the calibration data; whether the preprocessing is right, it cannot tell."
    )
    instead = ", in place of the bundle that was there" if replaced else ""
    _out().print(f"{made.root}  {made.digest[:12]}{instead}", soft_wrap=True)


def trained(report: TrainReport, *, as_json: bool) -> None:
    """What `narrows train` made."""
    manifest = report.bundle.manifest
    cut = manifest.cuts[0]
    if as_json:
        rows = [asdict(quality) for quality in cut.qualities]
        facts = asdict(report) | {"bundle": str(report.bundle.root), "metrics": str(report.metrics)}
        _print_json(facts | {"name": manifest.name, "digest": report.bundle.digest, "qualities": rows})
        return
    parts = _table(None, "part", "parameters", "MACs a picture", "puts out")
    for price in report.prices:
        parts.add_row(price.part, f"{price.params:,}", f"{price.macs:,}", "×".join(map(str, price.shape)))
    _out().print(parts)
    ratio = report.teacher_head_ms / report.head_ms
    _out().print(f"The encoder takes 1/{ratio:.3g} of the time of the teacher's own layers (ONNX Runtime, one thread).")
    known = "" if report.teacher_accuracy is None else f" (teacher {report.teacher_accuracy:.2%})"
    table = _table(None, "quality", "payload, bytes", f"right{known}", "same answer as the teacher")
    for i, quality in enumerate(cut.qualities):
        right = "" if quality.accuracy is None else f"{quality.accuracy:.2%}"
        same = "" if quality.agreement is None else f"{quality.agreement:.2%}"
        table.add_row(str(i), f"{quality.payload_bytes:,.1f}", right, same)
    _out().print(table)
    for name, held in report.tails.items():
        _out().print(f"tail {name}: {held.measure} {', '.join(f'{value:.3g}' for value in held.values)}")
    _out().print(
        f"{report.differing} of {report.symbols:,} symbols differ between ONNX Runtime and torch, "
        f"after {report.seconds:,.0f} s."
    )
    _out().print(f"{report.bundle.root}  {report.bundle.digest[:12]}", soft_wrap=True)


def pulled(place: Path, bundle: Bundle, *, as_json: bool) -> None:
    """What `narrows pull` brought."""
    if as_json:
        _print_json({"bundle": str(place), "name": bundle.manifest.name, "digest": bundle.digest})
    else:
        _out().print(f"{place}  {bundle.manifest.name}  {bundle.digest[:12]}")


def listening(server: Listening, *, as_json: bool) -> None:
    """That the server is up; a program that started it reads this line."""
    if as_json:
        _print_json(asdict(server))
        return
    metrics = f"; metrics and status on http://{server.metrics}" if server.metrics else ""
    lock = " with TLS" if server.encrypted else ""
    console = _out()
    console.print(f"listening on {server.address}{lock}, serving {', '.join(server.models)}{metrics}", soft_wrap=True)
    console.print("Ctrl-C or SIGTERM drains")


@contextmanager
def outcomes(*, as_json: bool, quiet: bool = False) -> Iterator[Callable[[Outcome], None]]:
    """Print outcomes as they come; on a terminal with a bar that counts them, and a summary at the end.

    Args:
        as_json: one JSON object a line.
        quiet: the summary alone; something else shows them.
    """
    if as_json:
        yield lambda outcome: _print_json(outcome.to_json())
        return
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    summary = _Summary()
    # One console for bar and lines where both are on a terminal, or they would write over each other.
    bar_console = _out() if sys.stdout.isatty() else _err()
    line_console = bar_console if sys.stdout.isatty() else _out()
    columns = (SpinnerColumn(), MofNCompleteColumn(), TextColumn("frames"), TimeElapsedColumn())
    with Progress(*columns, console=bar_console, disable=quiet or not bar_console.is_terminal, transient=True) as bar:
        task = bar.add_task("frames", total=None)

        said = ""

        def show(outcome: Outcome) -> None:
            nonlocal said
            summary.add(outcome)
            if not quiet:
                line_console.print(_line(outcome, said), markup=False, soft_wrap=True)
            said = str(outcome.error or "")
            bar.advance(task)

        try:
            yield show
        finally:  # Ctrl-C, too, ends a run that has something to say
            summary.print()


def _line(outcome: Outcome, said: str) -> str:
    if outcome.error is not None:
        text = "as above" if str(outcome.error) == said else str(outcome.error)
        return f"{outcome.source}  {outcome.outcome}: {text}"
    several = outcome.answers if len(outcome.answers) > 1 else {}
    answer = ", ".join(f"{tail}: {_said(one.top, one.outputs)}" for tail, one in several.items())
    answer = answer or _said(outcome.top, outcome.outputs)
    way = f"{outcome.wire_bytes:,} bytes" if outcome.provenance == "server" else f"here ({outcome.provenance})"
    return f"{outcome.source}  {answer}  {way}  {outcome.ms['total']:.1f} ms"


def _said(top: Sequence[Prediction], outputs: Iterable[str]) -> str:
    return f"{top[0].label or top[0].index} {top[0].score:.2f}" if top else ", ".join(outputs)


class _Summary:
    """Bytes and durations of the last frames; of no more than that, for a camera never ends."""

    _LAST = 10_000

    def __init__(self) -> None:
        self._answered = self._failed = 0
        self._columns: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=self._LAST))

    def add(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            self._failed += 1
            return
        self._answered += 1
        self._columns["bytes on the wire"].append(float(outcome.wire_bytes))
        for stage, duration_ms in outcome.ms.items():
            # An outcome's total counts from the input being there.
            name = "total after source" if stage == "total" else stage
            self._columns[f"{name}, ms"].append(duration_ms)

    def print(self) -> None:
        import numpy as np

        frames = "1 frame" if self._answered == 1 else f"{self._answered} frames"
        title = f"{frames} answered, {self._failed} failed"
        if not self._answered:
            _err().print(title)
            return
        table = _table(None, title, "p50", "p95")
        for name, values in self._columns.items():
            low, high = np.percentile(values, (50, 95))
            form = "{:,.0f}" if name.startswith("bytes") else "{:,.2f}"
            table.add_row(name, form.format(low), form.format(high))
        _err().print(table)


def demo(report: Report, *, as_json: bool) -> None:
    """What the demo found."""
    if as_json:
        _print_json(asdict(report))
        return
    shape = "×".join(map(str, report.symbols))
    table = _table(f"{report.frames} digits, cut at {report.cut} ({shape})", "way", "right", "bytes a frame", "of PNG")
    png = report.ways[0].wire_bytes
    for way in report.ways:
        table.add_row(way.name, f"{way.accuracy:.1%}", f"{way.wire_bytes:,.0f}", f"{way.wire_bytes / png:.0%}")
    stages = _table("\nwhere the time goes, one frame at a time, 8 bits", "stage", "p50, ms", "p95, ms")
    for stage in report.stages:
        stages.add_row(stage.name, f"{stage.p50_ms:.2f}", f"{stage.p95_ms:.2f}")
    console = _out()
    console.print(table)
    console.print(stages)
    console.print(f"\nthe bundle: {report.bundle}")
