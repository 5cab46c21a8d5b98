"""`narrows profile` and `narrows plan`: what was measured, and what follows from it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..runtime.errors import UsageError
from . import output, plans, reports
from .app import Json, Threads, app, need
from .device import Ca, Cert, Key, Provider, Tls, TokenFile, link_options, session_options
from .model import NEEDS, Weights

if TYPE_CHECKING:
    from ..planner.link import Link
    from ..planner.profile import Profile
    from ..profiling.options import ProfileOptions, Progress


class ObjectiveName(StrEnum):
    """What counts among the points that keep the bounds."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    ENERGY = "energy"
    BYTES = "bytes"
    ACCURACY = "accuracy"


@app.command()
def profile(
    model: Annotated[list[str], typer.Argument(help="A model, as for `narrows cut`; or bundles of one model.")],
    output_path: Annotated[Path, typer.Option("--output", "-o", help="The profile's file.")],
    images: Annotated[
        Path | None,
        typer.Option(
            help="Pictures or arrays of the usual kind; in folders named after their classes, they are labelled."
        ),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Of these, at most so many.")] = 16,
    server: Annotated[
        str | None, typer.Option(help="A running server's HOST:PORT, to measure the bundle's tails on.")
    ] = None,
    on_device: Annotated[
        bool, typer.Option("--on-device", help="Measure what the device does and no more: heads, coder, whole model.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Of this machine; its host name by default.")] = None,
    preprocess: Annotated[str, typer.Option(help="Of a model: as for `narrows cut`.")] = "none",
    weights: Weights = None,
    report: Annotated[Path | None, typer.Option(help="Show it as a page of pictures and sliders, .html.")] = None,
    cuts: Annotated[int, typer.Option(min=1, help="Of a model: cuts that are made and measured, at most.")] = 12,
    bundle: Annotated[
        Path | None, typer.Option(help="Of a model: keep these cuts there, as one bundle for all devices.")
    ] = None,
    no_memory: Annotated[
        bool, typer.Option("--no-memory", help="Leave the graphs' memory out, which takes a process each.")
    ] = False,
    threads: Threads = 0,
    provider: Provider = None,
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Measure where a model can be cut: times, coded bytes, agreement, memory, energy.

    Example: narrows profile net.onnx --images photos/ --preprocess imagenet -o laptop.json
    """
    from ..planner.choose import Constraints
    from ..planner.profile import write
    from ..profiling.options import ProfileOptions
    from ..report import Situation

    reports.check_page(report)
    options = ProfileOptions(
        images=images,
        frames=frames,
        name=name,
        on_device=on_device,
        server=server,
        memory=not no_memory,
        session=session_options(threads, provider),
        try_providers=provider is None,
        link=link_options(tls, ca, cert, key, token_file),
    )
    with output.progress() as step:
        if all(map(_is_bundle, model)):
            made = _profile_bundles(model, options, step)
        elif len(model) == 1:
            made = _profile_model(model[0], options, step, preprocess, weights, cuts, bundle)
        else:
            raise UsageError("one model, or bundles of one model; of these not all are bundles: " + ", ".join(model))
    output_path.parent.mkdir(parents=True, exist_ok=True)
    output_path.write_bytes(write(made))
    if report is not None:
        reports.write(Situation(made, made, _link(reports.ASSUMED_LINK), Constraints()), report, None)
    plans.profile(made, output_path, as_json=as_json)


@app.command()
def plan(
    profiles: Annotated[
        list[Path],
        typer.Argument(help="Profiles: of the device, or of several kinds of devices, and last the server's."),
    ],
    link: Annotated[
        list[str], typer.Option(help="5mbit,20ms (one way) or 5mbit,rtt=40ms; repeat it for several links.")
    ],
    deadline_ms: Annotated[float | None, typer.Option(help="Bound on the expected latency.")] = None,
    max_accuracy_drop: Annotated[
        float | None, typer.Option(help="Bound on what it may cost beside the whole model, in points of per cent.")
    ] = None,
    max_bytes: Annotated[float | None, typer.Option(help="Bound on the bytes of a frame on the wire.")] = None,
    max_energy_j: Annotated[float | None, typer.Option(help="Bound on the device's joules a frame.")] = None,
    max_memory_mb: Annotated[float | None, typer.Option(help="Bound on the memory of the device's graph.")] = None,
    objective: Annotated[ObjectiveName, typer.Option(help="What counts among the points that keep the bounds.")] = (
        ObjectiveName.LATENCY
    ),
    fps: Annotated[
        float | None, typer.Option(help="Frames a second that each device sends, and has to get through.")
    ] = None,
    p99_ms: Annotated[
        float | None, typer.Option(help="How many devices can one server carry so that 99 % of answers take no longer?")
    ] = None,
    mix: Annotated[str | None, typer.Option(help="Shares of the kinds of devices in the fleet, such as 3:1.")] = None,
    device_scale: Annotated[
        float, typer.Option(help="A device that takes so many times as long as in its profile.")
    ] = 1.0,
    server_load: Annotated[
        float, typer.Option(help="Share of its time in which the server is busy with others.")
    ] = 0.0,
    page: Annotated[
        Path | None, typer.Option("--output", "-o", help="Show it as a page of pictures and sliders, .html.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Write the pictures into this folder, for papers.")] = None,
    audit: Annotated[Path | None, typer.Option(help="Show what `narrows audit -o audit.json` found, too.")] = None,
    as_json: Json = False,
) -> None:
    """Say where to cut, or that not to: the best operating point over a link, by measured profiles.

    Example: narrows plan pi.json server.json --link 5mbit,rtt=40ms --max-accuracy-drop 1 -o report.html
    """
    from ..planner.choose import Constraints
    from ..planner.fleet import Kind, assign, capacity
    from ..planner.predict import Conditions
    from ..planner.profile import read
    from ..report import Situation

    found = [read(path) for path in profiles]
    devices, server = (found[:-1], found[-1]) if len(found) > 1 else (found, None)
    constraints = Constraints(
        deadline_ms=deadline_ms,
        max_accuracy_drop=max_accuracy_drop,
        min_fps=fps,
        max_bytes=max_bytes,
        max_energy_j=max_energy_j,
        max_memory_bytes=None if max_memory_mb is None else max_memory_mb * 1e6,
    )
    conditions = Conditions(device_scale=device_scale, server_load=server_load)
    if page is not None or png is not None:
        if len(devices) > 1:
            raise UsageError("a report is of one kind of device: give its profile and the server's, and no other")
        reports.check_page(page)
        shown = Situation(devices[0], server or devices[0], _link(link[0]), constraints, objective.value, conditions)
        reports.write(shown, page, png, audit)
    elif audit is not None:
        raise UsageError("--audit is shown in the page that -o writes; name one")
    shares = _mix(mix, len(devices))
    names = plans.names_of(devices)
    said = []
    for text, one in zip(link, map(_link, link), strict=True):
        kinds = [
            Kind(name, device, one, fps or 1.0, share)
            for name, device, share in zip(names, devices, shares, strict=True)
        ]
        assigned = assign(kinds, server, constraints, objective.value, conditions)
        carried = capacity(assigned, server, p99_ms, conditions) if p99_ms is not None else None
        said.append(plans.Said(text, assigned, carried))
    plans.plan(said, constraints, as_json=as_json)


def _is_bundle(text: str) -> bool:
    path = Path(text)
    return path.is_dir() or path.suffix == ".zip"


def _profile_bundles(paths: list[str], options: ProfileOptions, step: Progress) -> Profile:
    from ..profiling.bundle import open_bundle, profile_bundles

    return profile_bundles([open_bundle(path, on_device=options.on_device) for path in paths], options, step)


def _profile_model(
    model: str,
    options: ProfileOptions,
    step: Progress,
    preprocess: str,
    weights: str | None,
    cuts: int,
    bundle: Path | None,
) -> Profile:
    need("partition", *NEEDS)
    from ..profiling.model import CuttingOptions, profile_model

    return profile_model(model, options, CuttingOptions(preprocess, weights, cuts, bundle=bundle), step)


def _link(text: str) -> Link:
    """A link out of what `--link` says.

    Raises:
        UsageError: it is none, or a trace.
    """
    from ..device.schedule import parse_link
    from ..planner.link import Link

    if text.startswith("trace:"):
        raise UsageError("a plan is for a link that stays as it is; give its rate and delay, not a trace")
    state = parse_link(text).at(0.0)
    return Link(state.rate_bps, 2 * state.delay_s, jitter_s=state.jitter_s, loss=state.loss)


def _mix(text: str | None, kinds: int) -> list[float]:
    """Shares of the kinds of devices.

    Raises:
        UsageError: no numbers, or not one for each.
    """
    if text is None:
        return [1.0] * kinds
    try:
        shares = [float(part) for part in text.split(":")]
    except ValueError:
        shares = []
    if len(shares) != kinds:
        raise UsageError(f"--mix has a number for each of {kinds} kinds of devices, such as 3:1; {text!r} came")
    return shares
