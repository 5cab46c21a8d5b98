"""What was measured of a model on one machine: one JSON file, read without trust.

A device's profile has heads, a server's has tails, a workstation's has both; `join` puts the first two together.
Durations are milliseconds, sizes bytes, of one frame; None is what was not, or could not be, measured here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from ..runtime.errors import ProfileError
from ..runtime.manifest import Digest

SCHEMA = 1
MAX_BYTES = 64 << 20
"""Of a profile's file."""

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Format = Literal["jpeg", "webp"]


@dataclass(frozen=True, slots=True)
class Timing:
    """How long something took, over many runs."""

    ms: Positive
    """Median."""
    low_ms: Positive
    """The median's 95 % confidence interval, from the order statistics: its lower end,"""
    high_ms: Positive
    """and its upper end."""
    p95_ms: Positive
    runs: Count

    @property
    def spread(self) -> float:
        """Half of the interval's width, as a share of the median."""
        return (self.high_ms - self.low_ms) / (2 * self.ms) if self.ms else 0.0


@dataclass(frozen=True, slots=True)
class Batch:
    """One run of several frames."""

    frames: Annotated[int, msgspec.Meta(ge=1)]
    ms: Positive


@dataclass(frozen=True, slots=True)
class Sizes:
    """Coded bytes of one frame, over the pictures measured; without the frame around them."""

    mean: Positive
    p50: Positive
    p99: Positive


@dataclass(frozen=True, slots=True)
class QualityProfile:
    """One rung of a cut's ladder."""

    bits: Positive
    """Nominal bits of one symbol."""
    payload: Sizes
    encode: Timing | None = None
    decode: Timing | None = None
    """On the machine of this profile, as `encode`."""
    max_deviation: Positive | None = None
    """Largest |split - whole| over all outputs."""
    mean_deviation: Positive | None = None
    agreement: Share | None = None
    """Share of the pictures on which split and whole have the same best class; None for no classifier."""
    accuracy: Share | None = None
    """Share of right answers: on held-out pictures where the bundle says so, else on these where they had labels."""


@dataclass(frozen=True, slots=True)
class CutProfile:
    """One cut, measured through its own two graphs and the real coder."""

    name: str
    elements: Count
    """Symbols of one frame."""
    qualities: tuple[QualityProfile, ...]
    """0 is the smallest payload, as in the bundle."""
    head: Timing | None = None
    tail: Timing | None = None
    """One frame alone."""
    final: Timing | None = None
    """The device's last graph of a three-way cut."""
    tail_batches: tuple[Batch, ...] = ()
    """The tail with growing batches; the first is of one frame."""
    head_bytes: Count = 0
    """Files of the device's half, on disk."""
    tail_bytes: Count = 0
    peak_memory_bytes: Count | None = None
    """Highest resident memory of a process that does nothing but load and run the head, above one that does not."""
    energy_j: Positive | None = None
    """Of one head run, where there is a meter."""
    held_out_accuracy: Share | None = None
    """Of the uncut model on the pictures that were held out when a bottleneck was trained: what its qualities' accuracy
    compares to. None where that is `Whole.accuracy`."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A cut that was not made: what one profiled run of the whole graph says of it."""

    name: str
    head_ms: Positive
    """Sum of the kernels before the cut, scaled to the whole model's measured time."""
    raw_bytes: Count
    """Of the tensors that cross, in the model's own type."""
    symbols: Count
    """Bytes at 8 bits a symbol, before coding."""
    depth: Count = 0


@dataclass(frozen=True, slots=True)
class Encoding:
    """The input itself, compressed, for the whole model on the server."""

    format: Format
    quality: Annotated[int, msgspec.Meta(ge=1, le=100)]
    payload: Sizes
    encode: Timing | None = None
    decode: Timing | None = None
    agreement: Share | None = None
    """With the whole model on the uncompressed picture."""
    accuracy: Share | None = None


@dataclass(frozen=True, slots=True)
class Whole:
    """The uncut model."""

    run: Timing | None = None
    """One frame alone, on the machine of this profile."""
    batches: tuple[Batch, ...] = ()
    file_bytes: Count = 0
    peak_memory_bytes: Count | None = None
    energy_j: Positive | None = None
    accuracy: Share | None = None


@dataclass(frozen=True, slots=True)
class Transport:
    """What a frame costs between device and server beside the link itself: gRPC, threads, wake-ups."""

    fixed_ms: Positive
    """Of every frame, without the link's round trip."""
    byte_us: Positive = 0.0
    """Of every byte in the TCP stream, without the link's own rate."""
    how: str = ""
    """How it was measured."""


@dataclass(frozen=True, slots=True)
class Power:
    """What the device draws, in watts."""

    compute_w: Positive
    idle_w: Positive
    meter: str
    """What was read."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the figures come from."""

    name: str
    """Given by the user, or the processor's."""
    processor: str
    cores: Count
    threads: Count
    """Of a graph; 0 for one a core."""
    providers: tuple[str, ...]
    onnxruntime: str
    architecture: str = ""
    narrows: str = ""


@dataclass(frozen=True, slots=True)
class Profile:
    """What was measured of one model on one machine."""

    schema: int
    model: str
    """The model's name."""
    digest: Digest
    """Of the uncut model, or of the bundle where that does not say; profiles of one model have the same."""
    machine: Machine
    frames: Count
    """Pictures that sizes and agreement were measured on; 0 where they are the bundle's own figures."""
    cuts: tuple[CutProfile, ...] = ()
    estimates: tuple[Estimate, ...] = ()
    """Every cut of one tensor, measured ones included, by ascending work before it."""
    whole: Whole = field(default_factory=Whole)
    served_by: str = ""
    """The running server that tails, decoding and `server_whole` were measured on; this machine where it is empty."""
    server_whole: Whole | None = None
    """The uncut model on that server; without figures where no server holds it, None for the same as `whole`."""
    encodings: tuple[Encoding, ...] = ()
    transport: Transport | None = None
    power: Power | None = None
    reply_bytes: Positive = 0.0
    """In the TCP stream, of one answer of the best classes."""
    notes: tuple[str, ...] = ()
    """What a reader must know: throttling, figures that did not settle, what was left out."""

    def cut(self, name: str) -> CutProfile | None:
        """A measured cut by name."""
        return next((cut for cut in self.cuts if cut.name == name), None)


def write(profile: Profile) -> bytes:
    """A profile as JSON, indented for people."""
    return msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n"


def parse(text: bytes, where: object) -> Profile:
    """Read a profile that may come from anywhere.

    Raises:
        ProfileError: it is none, of another schema, or holds figures that cannot be.
    """
    if len(text) > MAX_BYTES:
        raise ProfileError(f"{where} has {len(text)} bytes; a profile has {MAX_BYTES} at most")
    try:
        schema = msgspec.json.decode(text, type=dict[str, Any]).get("schema")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProfileError(f"{where} is no profile: no JSON object ({error})") from None
    if schema != SCHEMA:
        raise ProfileError(f"{where} has profile schema {schema!r}; this release reads {SCHEMA}. Profile again")
    try:
        profile = msgspec.json.decode(text, type=Profile)
    except (msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise ProfileError(f"{where} is no profile that narrows writes ({error})") from None
    _check(profile, where)
    return profile


def read(path: str | Path) -> Profile:
    """Read a profile's file.

    Raises:
        ProfileError: as `parse`, or it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ProfileError(f"{path} cannot be read ({error.strerror or error})") from None
    return parse(text, path)


def _check(profile: Profile, where: object) -> None:
    """What types alone do not say.

    Raises:
        ProfileError: naming the fault.
    """
    names = [cut.name for cut in profile.cuts]
    if len(set(names)) != len(names):
        raise ProfileError(f"{where} names a cut twice")
    for cut in profile.cuts:
        if not cut.qualities:
            raise ProfileError(f"{where}: cut {cut.name!r} has no quality")
    if not _finite(profile):
        raise ProfileError(f"{where} holds a figure that is not finite")


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, tuple):
        return all(map(_finite, value))
    return not is_dataclass(value) or all(_finite(getattr(value, f.name)) for f in fields(value))
