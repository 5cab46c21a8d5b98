"""`narrows bench`: a load on a device and a server, and where the time goes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.markup import escape
from rich.table import Table

from ..runtime.errors import FramesFailedError, UsageError
from . import output
from .app import Json, Threads, app
from .device import Ca, Cert, Key, Provider, Tls, TokenFile, link_options, offload_point, session_options
from .tables import out, print_json, table

if TYPE_CHECKING:
    from ..bench import BenchResult, Found, MaxRate, Step
    from ..device import Point

Number = TypeVar("Number", int, float)


class Search(StrEnum):
    """What can be searched for."""

    MAX_RATE = "max-rate"


@app.command()
def bench(
    bundle: Annotated[Path, typer.Argument(help="A bundle: its folder or zip archive.")],
    server: Annotated[
        str | None, typer.Option(help="The server's HOST:PORT; a process on this machine by default.")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--input", help="Pictures or arrays, as for `run`; the golden frame by default.")
    ] = None,
    link: Annotated[str | None, typer.Option(help="Emulate a link: 10mbit,20ms,1% or trace:FILE.")] = None,
    concurrency: Annotated[
        str | None, typer.Option(help="Closed loop: frames under way, joined by commas. 1 by default.")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Open loop: frames a second (Poisson arrivals), joined by commas.")
    ] = None,
    find: Annotated[Search | None, typer.Option(help="Search for the highest rate that keeps --p99-ms.")] = None,
    p99_ms: Annotated[float | None, typer.Option(help="The bound that --find keeps, counted from the arrival.")] = None,
    cut_name: Annotated[str | None, typer.Option("--cut", help="Which cut; the bundle's first by default.")] = None,
    quality: Annotated[
        str | None, typer.Option(help="Qualities to split at, joined by commas; the best by default.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="The whole model on the device, besides.")] = False,
    offload: Annotated[
        str | None, typer.Option(help="Sending the picture, besides: 90 (JPEG) or webp:80, joined by commas.")
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="Device processes; a rate is over all of them.")] = 1,
    window: Annotated[int, typer.Option(min=1, help="Frames under way at a device in an open loop, at most.")] = 8,
    window_s: Annotated[float, typer.Option(help="Seconds between two looks at whether a step has settled.")] = 1.0,
    max_s: Annotated[float, typer.Option(help="Seconds that a step takes at most.")] = 30.0,
    tolerance: Annotated[float, typer.Option(help="Share by which the parts of a settled step may differ.")] = 0.1,
    timeout: Annotated[float, typer.Option(help="Seconds after which a frame without an answer is an error.")] = 10.0,
    threads: Threads = 0,
    provider: Provider = None,
    seed: Annotated[int, typer.Option(help="Of the arrivals.")] = 0,
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    csv: Annotated[Path | None, typer.Option(help="Write a row for every step to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Put a load on a device process and a server process, and say where the time goes.

    Example: narrows bench bundles/resnet --input photos/ --link 10mbit,20ms --concurrency 1,4 --rate 10,20
    """
    from ..bench import BenchOptions, Load, Pace, run, write_csv
    from ..device import Point

    splits = [Point("split", cut_name, q) for q in numbers("--quality", quality, int)]
    points = splits or [Point("split", cut_name)]
    points += [Point("local")] * local
    points += [offload_point(text) for text in (offload.split(",") if offload else ())]
    loads = [Load(concurrency=n) for n in numbers("--concurrency", concurrency, int)]
    loads += [Load(rate=r) for r in numbers("--rate", rate, float)]
    promise = _promise(find, p99_ms)
    options = BenchOptions(
        bundle=bundle,
        server=server,
        source=source,
        link=link,
        points=tuple(points),
        loads=tuple(loads) if loads or promise else (Load(concurrency=1),),
        devices=devices,
        window=window,
        pace=Pace(min(window_s, max_s), max_s, tolerance),
        timeout_s=timeout,
        session=session_options(threads, provider),
        security=link_options(tls, ca, cert, key, token_file).security,
        seed=seed,
    )
    with output.progress() as step:
        result = run(options, find=promise, progress=step)
    if csv is not None:
        write_csv(result.steps, csv)
    if as_json:
        print_json(result.to_json())
    else:
        _show(result)
    if result.ended == "interrupted":
        raise typer.Exit(130)
    if result.ended:
        raise FramesFailedError(f"not everything was measured: {result.ended}")


def numbers(option: str, text: str | None, kind: type[Number]) -> list[Number]:
    """Numbers joined by commas.

    Raises:
        UsageError: they are none.
    """
    try:
        return [kind(part) for part in text.split(",")] if text else []
    except ValueError:
        raise UsageError(f"{option} takes numbers joined by commas, such as 1,2,4; {text!r} came") from None


def _promise(find: Search | None, p99_ms: float | None) -> MaxRate | None:
    from ..bench import MaxRate

    if (find is None) != (p99_ms is None):
        raise UsageError("--find max-rate and --p99-ms go together: the highest rate is that which keeps the bound")
    return None if p99_ms is None else MaxRate(p99_ms)


def _show(result: BenchResult) -> None:
    console = out()
    for point in dict.fromkeys(step.point for step in result.steps):
        console.print(_table(point, [step for step in result.steps if step.point == point]))
    if any(not step.settled for step in result.steps):
        console.print("* had not settled when it ended (--max-s, --tolerance)")
    for found in result.found:
        console.print(_found(found), markup=False)
    inputs = "the bundle's golden frame" if result.golden else f"{result.inputs} inputs in turn"
    link = f", link {result.link}" if result.link else ""
    console.print(f"{result.bundle} ({result.digest[:12]}), {result.server}{link}; {inputs}", markup=False)
    console.print(f"energy: {result.meter}" if result.meter else "no energy: this machine has no meter", markup=False)


def _table(point: Point, steps: list[Step]) -> Table:
    stages = [name for name in _STAGES if any(name in step.stages for step in steps)]
    heads = ["load", "answers/s", "in flight", "not answered", "p50", "p90", "p99", "p99.9", *stages]
    made = table(escape(str(point)), *heads, "bytes", "agrees", "mJ")
    for step in steps:
        whole = step.stages.get("latency")
        figures = [whole.p50, whole.p90, whole.p99, whole.p999] if whole else [None] * 4
        parts = [step.stages[name].p50 if name in step.stages else None for name in stages]
        made.add_row(
            f"{step.load}{'' if step.settled else ' *'}",
            f"{step.throughput:.4g}",
            f"{step.in_flight:.2g}",
            _failures(step),
            *(_ms(value) for value in (*figures, *parts)),
            f"{step.wire_bytes:,.0f}",
            "–" if step.agreement is None else f"{step.agreement:.1%}",
            "–" if step.joules is None else f"{step.joules * 1000:.3g}",
        )
    return made


_STAGES = ("waiting", "head", "coding", "link", "queue", "tail", "local")


def _ms(value: float | None) -> str:
    """A duration; a dash for a percentile that takes more frames than there were."""
    return "–" if value is None else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _failures(step: Step) -> str:
    return ", ".join(f"{count} {code}" for code, count in step.outcomes.items() if code != "ok") or "0"


def _found(found: Found) -> str:
    if found.rate is None:
        return f"{found.point}: no rate that was tried keeps p99 ≤ {found.p99_ms:g} ms"
    above = f"; {found.broken_at:.4g} does not" if found.broken_at is not None else ", the highest that was tried"
    return f"{found.point}: {found.rate:.4g} frames a second keep p99 ≤ {found.p99_ms:g} ms{above}"
