"""`narrows run` and `narrows pull`: the device's side."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..runtime.errors import FramesFailedError, NarrowsError, UsageError, from_code
from ..runtime.manifest import Half
from . import output
from .app import Json, Threads, app, keep_to_cpus

if TYPE_CHECKING:
    from ..device import Outcome
    from ..device.policies import Objective, Policy
    from ..runtime.link import LinkOptions
    from ..runtime.point import Point
    from ..runtime.session import SessionOptions


class PolicyName(StrEnum):
    """What chooses each frame's operating point."""

    STATIC = "static"
    LATENCY = "latency"
    ACCURACY = "accuracy"
    ENERGY = "energy"
    BYTES = "bytes"


class FallbackName(StrEnum):
    """What answers on the device when no server does in time."""

    BEST = "best"
    EXIT = "exit"
    LOCAL = "local"
    NONE = "none"


class DropName(StrEnum):
    """What happens to frames that come faster than they are answered."""

    BLOCK = "block"
    LATEST = "latest"
    OLDEST = "oldest"


Provider = Annotated[
    str | None, typer.Option(help="Execution provider, such as cuda or cpu; the quickest here, found by trial.")
]
Tls = Annotated[bool, typer.Option("--tls", help="Encrypt, trusting the usual authorities; implied by --ca.")]
Ca = Annotated[Path | None, typer.Option(help="The authority of the server's certificate (PEM).")]
Cert = Annotated[Path | None, typer.Option(help="This device's own certificate (PEM).")]
Key = Annotated[Path | None, typer.Option(help="Its private key (PEM).")]
TokenFile = Annotated[Path | None, typer.Option(help="File that holds this device's bearer token.")]


class Protocol(StrEnum):
    """What the server speaks."""

    NARROWS = "narrows"
    OIP = "oip"


@app.command()
def run(
    bundle: Annotated[Path, typer.Argument(help="A bundle: its folder or zip archive. The device's half is enough.")],
    server: Annotated[str, typer.Option(help="The server's HOST:PORT; several, joined by commas, for failover.")],
    source: Annotated[
        str,
        typer.Option(
            "--input",
            help="A picture, folder or glob, .npz or .npy, a video, camera:0, rtsp://…, gst:PIPELINE, or - for a pipe.",
        ),
    ],
    cut_name: Annotated[
        str | None, typer.Option("--cut", help="Which of the bundle's cuts; its first by default.")
    ] = None,
    tail: Annotated[
        list[str] | None, typer.Option(help="Which of the cut's tails answers; may be said several times.")
    ] = None,
    quality: Annotated[int | None, typer.Option(help="0 is the smallest payload; the best by default.")] = None,
    coder: Annotated[str | None, typer.Option(help="context/1, bitplane-zstd/1 or raw/1; the best by default.")] = None,
    protocol: Annotated[
        Protocol, typer.Option(help="oip: the server is a stock Triton or KServe one that holds the tail.")
    ] = Protocol.NARROWS,
    model: Annotated[
        str, typer.Option(help="With oip: the tail's name there; the bundle's name and .tail by default.")
    ] = "",
    policy: Annotated[
        PolicyName, typer.Option(help="Always the given point, or the best for an objective, frame by frame.")
    ] = PolicyName.STATIC,
    offload: Annotated[
        str | None,
        typer.Option(help="Let the policy send the picture itself: 90, a JPEG's quality, or webp:80."),
    ] = None,
    floor: Annotated[float, typer.Option(min=0, max=1, help="Least agreement with the whole model that counts.")] = 0.0,
    deadline_ms: Annotated[float | None, typer.Option(help="When an answer is due, counted from the input.")] = None,
    fallback: Annotated[
        FallbackName, typer.Option(help="What answers here when no server does in time, of what the bundle carries.")
    ] = FallbackName.BEST,
    exit_confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Ask the early exit first; send nothing where it is so sure.")
    ] = None,
    max_payload_bytes: Annotated[
        int | None, typer.Option(min=1, help="Most bytes of a frame; quality goes down for what is larger.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds after which a frame without an answer is an error.")] = 10.0,
    window: Annotated[int, typer.Option(min=1, help="Frames under way at once, at most.")] = 8,
    drop: Annotated[DropName, typer.Option(help="Frames that come too fast: wait, or skip some.")] = DropName.BLOCK,
    threads: Threads = 0,
    provider: Provider = None,
    cpus: Annotated[str | None, typer.Option(help="Cores that this process may use, such as 2,3 or 0-3.")] = None,
    link: Annotated[
        str | None, typer.Option(help="Emulate a link: 10mbit,20ms,1% or trace:FILE (time, rate, delay).")
    ] = None,
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT of raw RGB pictures at --input -; without it, JPEG or PNG files.")
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Look for new versions on the server; swap them in between two frames.")
    ] = False,
    update_every: Annotated[float, typer.Option(min=1, help="Seconds between two looks.")] = 60.0,
    save_outputs: Annotated[
        Path | None, typer.Option(help="Folder for the raw output tensors, one .npz a frame.")
    ] = None,
    annotate: Annotated[
        Path | None, typer.Option(help="Write a video (.mp4, .mkv, .avi) of the frames with their answers.")
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Show rates, the point in use and the link, as they are.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Stream inputs through the head here and the tail on a server, and print the predictions.

    Example: narrows run bundles/resnet --server 127.0.0.1:8470 --input photos/
    """
    from ..device import DeviceOptions, OpenInference, run_source
    from ..device.annotate import AnnotatedVideo
    from ..device.emulator import LinkEmulator
    from ..device.run import UpdateFrom
    from ..device.schedule import parse_link
    from ..device.sources import SourceOptions
    from ..runtime.answer import Form, Wanted
    from ..runtime.bundle import Bundle
    from ..runtime.codec import labels
    from .live import LiveView

    if cpus is not None:
        keep_to_cpus(cpus)
    if model and protocol is not Protocol.OIP:
        raise UsageError("--model goes with --protocol oip: Narrows' own server knows the bundle by its digest")
    servers = server.split(",")
    if link is not None and len(servers) > 1:
        raise UsageError("--link stands between this device and one server; several were given")
    options = DeviceOptions(
        cut=cut_name,
        quality=quality,
        wanted=Wanted(Form.TENSORS if save_outputs else Form.TOP, tails=tuple(tail or ())),
        coders=(coder,) if coder else tuple(labels()),
        policy=_policy(policy, floor),
        offload=offload_point(offload) if offload else None,
        open_inference=OpenInference(model) if protocol is Protocol.OIP else None,
        deadline_ms=deadline_ms,
        fallback=fallback.value,
        exit_confidence=exit_confidence,
        max_payload_bytes=max_payload_bytes,
        timeout_s=timeout,
        window=window,
        drop=drop.value,
        session=session_options(threads, provider),
        try_providers=provider is None,
        link=link_options(tls, ca, cert, key, token_file),
    )
    half = Bundle.open(bundle.resolve(), Half.DEVICE)
    reading = SourceOptions(_size(size), keep_pictures=annotate is not None)
    newer = UpdateFrom(servers[0], bundle, update_every, options.link) if update else None
    seen = _Seen()
    with ExitStack() as stack:
        if link is not None:
            emulator = stack.enter_context(LinkEmulator(server, parse_link(link)))
            options = replace(options, link=replace(options.link, via=emulator.address))
        video = None if annotate is None else stack.enter_context(AnnotatedVideo(annotate))
        view = stack.enter_context(LiveView()) if live else None
        show = stack.enter_context(output.outcomes(as_json=as_json, quiet=live and not as_json))
        for outcome in run_source(
            half,
            servers,
            source,
            options,
            save_outputs=save_outputs,
            reading=reading,
            update=newer,
            opened=view.watch if view is not None else lambda _device: None,
        ):
            show(outcome)
            seen.add(outcome)
            if video is not None:
                video.add(outcome)
            if view is not None:
                view.add(outcome)
    seen.judge()


@app.command()
def pull(
    server: Annotated[str, typer.Argument(help="The server's HOST:PORT.")],
    model: Annotated[str, typer.Argument(help="The model's name there.")],
    target: Annotated[Path | None, typer.Option("--output", "-o", help="Where it goes; ./MODEL by default.")] = None,
    roll_back: Annotated[
        bool, typer.Option("--roll-back", help="Go back to the version before the last pull instead.")
    ] = False,
    threads: Threads = 0,
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Fetch the device's half of a bundle, try it here, and swap it in.

    Example: narrows pull 127.0.0.1:8470 resnet -o bundles/resnet
    """
    from ..device import pull as pulling
    from ..runtime.session import SessionOptions

    place = target or Path(model)
    if roll_back:
        bundle = pulling.roll_back(place)
    else:
        options = pulling.PullOptions(
            session=SessionOptions(threads=threads), link=link_options(tls, ca, cert, key, token_file)
        )
        output.waiting(f"asking {server} for {model}")
        bundle = pulling.pull(server, model, place, options)
    output.pulled(place, bundle, as_json=as_json)


class _Seen:
    """What has come of a run so far; of no more than its counts, for a camera never ends."""

    def __init__(self) -> None:
        self._total = self._failed = 0
        self._codes: set[str] = set()
        self._last: NarrowsError | None = None

    def add(self, outcome: Outcome) -> None:
        """Count a frame."""
        self._total += 1
        if outcome.error is not None:
            self._failed += 1
            self._codes.add(outcome.error.code)
            self._last = outcome.error

    def judge(self) -> None:
        """Nothing where every frame was answered.

        Raises:
            NarrowsError: what all frames ended in, where that is one thing; `FramesFailedError` otherwise.
        """
        if self._last is None:
            return
        if self._failed == self._total and len(self._codes) == 1:
            raise from_code(self._last.code, f"no frame was answered; the last: {self._last}")
        raise FramesFailedError(f"{self._failed} of {self._total} frames ended in an error; each says which above")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f"--size takes WIDTHxHEIGHT, such as 640x480, not {text!r}")
    return int(width), int(height)


def _policy(name: PolicyName, floor: float) -> Policy:
    from ..device.policies import Adaptive, Static

    return Static() if name is PolicyName.STATIC else Adaptive(cast("Objective", name.value), floor=floor)


def session_options(threads: int, provider: str | None) -> SessionOptions:
    """How graphs are run, as the options above say.

    Raises:
        UsageError: a provider that is not here.
    """
    from ..device.providers import by_name, with_provider
    from ..runtime.session import SessionOptions

    options = SessionOptions(threads=threads)
    return options if provider is None else with_provider(options, by_name(provider))


def offload_point(text: str) -> Point:
    """The point that `--offload` names.

    Raises:
        UsageError: it names none.
    """
    from ..runtime.point import Point

    form, _, quality = text.rpartition(":")
    if form not in ("", "jpeg", "webp") or not quality.isdecimal():
        raise UsageError(f"--offload takes a JPEG's quality, such as 90, or a format's, such as webp:80; {text!r} came")
    return Point("offload", quality=int(quality), format="webp" if form == "webp" else "jpeg")


def link_options(
    tls: bool, ca: Path | None, cert: Path | None, key: Path | None, token_file: Path | None
) -> LinkOptions:
    """How a device reaches its server, as the options above say.

    Raises:
        UsageError: a token that cannot be read, or options that do not go together.
    """
    from ..runtime.credentials import LinkSecurity
    from ..runtime.link import LinkOptions

    try:
        token = token_file.read_text().strip() if token_file else ""
    except OSError as error:
        raise UsageError(f"{token_file} cannot be read ({error.strerror})") from None
    return LinkOptions(security=LinkSecurity(tls, ca, cert, key, token))
