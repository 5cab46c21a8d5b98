"""What a bundle says about itself: `manifest.json` as frozen dataclasses, read from strangers without trust."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from .errors import BundleError, QualityError

SCHEMA = 1
MANIFEST = "manifest.json"
MAX_TAIL_NAME = 100

Count = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Half(StrEnum):
    """Which end needs a file."""

    DEVICE = "device"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that enters or leaves a graph."""

    name: str
    dtype: str
    """NumPy's name of the element type; "bfloat16" is carried as `uint16` bits."""
    shape: tuple[Count | None, ...]
    """One frame's shape: without the batch axis where the manifest says `batched`. None where a dimension is open."""

    def __post_init__(self) -> None:
        if self.dtype != "bfloat16":
            np.dtype(self.dtype)


@dataclass(frozen=True, slots=True)
class TableRef:
    """Where in `tables.bin` a coder's table stands."""

    coder: str
    """Label of the coder that it was made for, such as "context/1"."""
    offset: Count
    size: Count


@dataclass(frozen=True, slots=True)
class CrossingTensor:
    """One tensor of a cut, as it crosses the link."""

    name: str
    """The tensor's name in the uncut model."""
    symbols: TensorSpec
    """What the head puts out and the tail takes in: `uint8` or `uint16` symbols, or the tensor as it is."""
    levels: tuple[Annotated[int, msgspec.Meta(ge=1, le=1 << 16)], ...] = ()
    """Size of the alphabet at each quality, the same at all where the model itself makes the symbols. Empty for a
    tensor of other values, which crosses as it is."""
    channel_axis: Count | None = None
    """Axis of `symbols.shape` that the quantiser steps run along; None for one step per tensor."""
    tables: tuple[TableRef | None, ...] = ()
    """The coder's table at each quality; empty where none was calibrated."""

    @property
    def quantised(self) -> bool:
        """Whether symbols cross the link, and not the tensor as it is."""
        return bool(self.levels)


@dataclass(frozen=True, slots=True)
class Quality:
    """One rung of the ladder, as measured on the calibration data when the bundle was made."""

    bits: float
    """Nominal bits of one symbol."""
    payload_bytes: float
    """Mean payload of one frame."""
    max_deviation: float
    """Largest |split - whole| over all outputs."""
    mean_deviation: float
    """Mean |split - whole| over all outputs."""
    agreement: Share | None = None
    """Share of the calibration data on which split and whole have the same best class; None for no classifier."""
    accuracy: Share | None = None
    """Share of held-out pictures on which the best class is the right one; None where no labels were given."""


@dataclass(frozen=True, slots=True)
class ExitPoint:
    """What an early exit did to the calibration data at one threshold of its confidence."""

    threshold: Share
    """Frames whose confidence is no less are answered on the device."""
    coverage: Share
    """Share of frames that were."""
    agreement: Share
    """Share of these whose best class was the whole model's too; 1 where there were none."""
    accuracy: Share | None = None
    """Share of these whose best class was the right one; None where no labels were given."""


@dataclass(frozen=True, slots=True)
class ExitQuality:
    """An early exit on the symbols of one quality, as measured on the calibration data."""

    agreement: Share
    """Share of all frames whose best class is the whole model's too: what the exit is worth where it answers all."""
    temperature: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Confidence is the largest of softmax(logits / temperature) (Guo et al., ICML 2017), so that among frames of
    confidence *c* a share *c* is right."""
    accuracy: Share | None = None
    """Share of all frames whose best class is the right one; None where no labels were given."""
    points: tuple[ExitPoint, ...] = ()
    """Thresholds, rising."""

    def agreement_above(self, threshold: float) -> float:
        """How often answers of at least this confidence agree with the whole model, by the nearest rung below."""
        rungs = [point.agreement for point in self.points if point.threshold <= threshold]
        return rungs[-1] if rungs else self.agreement


@dataclass(frozen=True, slots=True)
class Exit:
    """An early exit at a cut: a small graph on the device that answers from what the head has, at less certainty."""

    graph: str
    """File name. It takes by name what it has as inputs, of: the cut's symbols and its quality input, the head's
    `head_outputs` and `kept`. It gives `outputs`, of the manifest's shapes."""
    outputs: tuple[str, ...]
    """The model outputs that it makes: a classifier's, and every other that the head does not have already."""
    golden: str
    """File of what goes into the graph and comes out of it: `input/QUALITY/I` in the order of the graph's inputs,
    without the quality; `output/QUALITY/I` in the order of `outputs`; no batch axes."""
    qualities: tuple[ExitQuality, ...]
    """One for each quality of the cut."""


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One output of the model, or of a further tail."""

    tensor: TensorSpec
    kind: Literal["logits", "probabilities", "scores", "tensor"] = "tensor"
    """`logits` and `probabilities` are a classifier's; `scores` are too, on a scale of their own; `tensor` is anything
    else."""


@dataclass(frozen=True, slots=True)
class FurtherTail:
    """Another answer to a cut's symbols, as a mask beside a class; its graph takes what the cut's own tail takes."""

    graph: str
    """File name of the graph; the server's."""
    outputs: tuple[OutputSpec, ...]
    """What it answers with: outputs of the graph, by name. They are its own, and not among the manifest's."""
    golden: str
    """File of its answers to the symbols in the cut's `golden_tail`: `output/<quality>/<i>`, `i` counting `outputs`."""
    labels: tuple[str, ...] = ()
    """Names of the classes, where it answers with classes: of a frame (logits), or of its pixels (a tensor)."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A way to split the model: two graphs and what crosses between them."""

    name: str
    head: str
    """File name of the head's graph."""
    tail: str
    """File name of the tail's graph."""
    crossing: tuple[CrossingTensor, ...]
    """In the order of the head's outputs and the tail's inputs."""
    qualities: tuple[Quality, ...]
    """0 is the smallest payload. A cut without a quantiser has one."""
    quality_input: str | None
    """Name of the `int32` `[batch]` input of both graphs; None where nothing is quantised."""
    head_inputs: tuple[str, ...]
    """The model inputs that the head takes, in order."""
    head_outputs: tuple[str, ...]
    """The model outputs that the head has already: they stay on the device."""
    tail_outputs: tuple[str, ...]
    """The model outputs that the tail answers with."""
    golden_head: str
    golden_tail: str
    back: tuple[CrossingTensor, ...] = ()
    """In a three-way cut, what the server answers with: the first of `tail_outputs`, quantised like `crossing`, for the
    device's last graph. Empty for the usual cut, whose answer is the model's."""
    final: str | None = None
    """File name of the device's last graph, in a three-way cut. It takes the symbols of `back`, the quality, and of the
    model's inputs, `head_outputs` and `kept` those that it has as inputs."""
    kept: tuple[str, ...] = ()
    """Further outputs of the head, for `final` and for `exit`; they never leave the device."""
    final_outputs: tuple[str, ...] = ()
    """The model outputs that `final` makes."""
    golden_final: str | None = None
    """File of what goes into `final` and comes out of it."""
    symbols_exact: bool = True
    """Without the quantiser, tail(head(x)) was bit for bit model(x) on the machine that cut it."""
    exit: Exit | None = None
    """An early answer on the device, where one was trained."""
    tail_name: str = "main"
    """What the tail above is asked for by."""
    further_tails: dict[str, FurtherTail] = field(default_factory=dict)
    """More tails for the same symbols, by the names that they are asked for by."""

    @property
    def tail_names(self) -> tuple[str, ...]:
        """All tails that a frame of this cut can be answered by, the cut's own first."""
        return (self.tail_name, *self.further_tails)

    def check_tails(self, names: Iterable[str]) -> None:
        """Refuse a tail that this cut does not have.

        Raises:
            QualityError: naming those that there are.
        """
        for name in names:
            if name not in self.tail_names:
                raise QualityError(f"tail {name!r} is unknown; cut {self.name!r} has {', '.join(self.tail_names)}")

    @property
    def three_way(self) -> bool:
        """Whether the device has a last graph of its own, so that the server's answer is not the model's."""
        return self.final is not None

    def check_quality(self, quality: int) -> None:
        """Refuse a quality that this cut does not have.

        Raises:
            QualityError: naming the range.
        """
        if not 0 <= quality < len(self.qualities):
            raise QualityError(f"quality {quality} is unknown; cut {self.name!r} has 0…{len(self.qualities) - 1}")


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How a picture becomes the model's input.

    The first group happens on the device before the head (a camera set to the right size needs none of it), the second
    inside the head's graph.
    """

    height: Annotated[int, msgspec.Meta(ge=1)]
    width: Annotated[int, msgspec.Meta(ge=1)]
    fit: Literal["crop", "stretch", "pad"] = "crop"
    """`crop`: scale the shorter side to size / `crop`, keep the middle; `stretch`: scale both sides; `pad`: scale the
    longer side and fill the rest, picture at the top left."""
    crop: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    fill: Annotated[int, msgspec.Meta(ge=0, le=255)] = 114

    order: Literal["rgb", "bgr"] = "rgb"
    scale: float = 1.0
    """Multiplied first: (byte × scale - mean) / std."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    layout: Literal["nchw", "nhwc"] = "nchw"

    @property
    def affine(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The same as one multiplication and one addition a channel: factors and offsets."""
        factors = tuple(self.scale / deviation for deviation in self.std)
        offsets = tuple(-mean / deviation for mean, deviation in zip(self.mean, self.std, strict=True))
        return factors, offsets


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the bundle, and who needs it."""

    sha256: Digest
    size: Count
    halves: tuple[Half, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that a bundle says about itself."""

    schema: int
    name: str
    """The model's name: what a device asks a server for."""
    made_by: str
    """Program and version, and the runtime that proved the cuts."""
    batched: bool
    """Every tensor that crosses, and every output, has a leading batch axis of any length."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[OutputSpec, ...]
    cuts: tuple[Cut, ...]
    files: dict[str, FileEntry]
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    tables: str | None = None
    """File name of the coder tables, where there are any."""
    local: str | None = None
    """File name of the whole model for the device, where the bundle carries it."""
    accuracy: Share | None = None
    """Of the whole model, or of the teacher of a trained bottleneck, on the pictures that `Quality.accuracy` is of."""
    model: Digest | None = None
    """sha256 of the uncut model as it was loaded, weights included: bundles of one model have the same."""

    def cut(self, name: str | None = None) -> tuple[int, Cut]:
        """A cut by name, or the first: its index and itself.

        Raises:
            QualityError: no cut of that name.
        """
        for index, cut in enumerate(self.cuts):
            if name is None or cut.name == name:
                return index, cut
        raise QualityError(f"no cut {name!r} in bundle {self.name!r}; it has {', '.join(c.name for c in self.cuts)}")


def parse(text: bytes, where: object) -> Manifest:
    """Read a manifest that may come from a stranger.

    Raises:
        BundleError: it is none, or of another schema, or names files that it must not.
    """
    try:
        schema = msgspec.json.decode(text, type=dict[str, Any]).get("schema")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{where}: {MANIFEST} is no JSON object ({error})") from None
    if schema != SCHEMA:
        raise BundleError(f"{where}: bundle schema {schema!r}; this release reads {SCHEMA}. Cut the model again")
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
        _check(manifest)
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise BundleError(f"{where}: {MANIFEST} is not one that narrows writes ({error})") from None
    return manifest


def _check(manifest: Manifest) -> None:
    """What types alone do not say.

    Raises:
        ValueError: naming the fault.
    """
    for name in manifest.files:
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or "\\" in name or name == MANIFEST or "\0" in name:
            raise ValueError(f"the file name {name!r} is not allowed")
    named = [f for cut in manifest.cuts for f in (cut.head, cut.tail, cut.golden_head, cut.golden_tail)]
    named += [f for cut in manifest.cuts for tail in cut.further_tails.values() for f in (tail.graph, tail.golden)]
    optional = [manifest.tables, manifest.local, *(f for cut in manifest.cuts for f in (cut.final, cut.golden_final))]
    optional += [f for cut in manifest.cuts if cut.exit is not None for f in (cut.exit.graph, cut.exit.golden)]
    for name in [*named, *filter(None, optional)]:
        if name not in manifest.files:
            raise ValueError(f"{name!r} is used and not listed")
    if not manifest.cuts:
        raise ValueError("there is no cut")
    for cut in manifest.cuts:
        _check_cut(cut)
        if cut.exit is not None:
            _check_exit(manifest, cut, cut.exit)


def _check_cut(cut: Cut) -> None:
    if not cut.qualities:
        raise ValueError(f"cut {cut.name!r} has no quality")
    for tensor in (*cut.crossing, *cut.back):
        _check_crossing(cut, tensor)
    if bool(cut.back) != (cut.final is not None) or bool(cut.back) != (cut.golden_final is not None):
        raise ValueError(f"cut {cut.name!r} is three-way by half: back, final and golden_final go together")
    if tuple(tensor.symbols.name for tensor in cut.back) != cut.tail_outputs[: len(cut.back)]:
        raise ValueError(f"cut {cut.name!r}: what comes back is not the first of what the tail answers")
    if cut.tail_name in cut.further_tails:
        raise ValueError(f"cut {cut.name!r} has two tails of the name {cut.tail_name!r}")
    if any(not name or len(name) > MAX_TAIL_NAME for name in cut.tail_names):
        raise ValueError(f"cut {cut.name!r}: a tail's name has 1 to {MAX_TAIL_NAME} characters")


def _check_exit(manifest: Manifest, cut: Cut, early: Exit) -> None:
    kinds = {output.tensor.name: output.kind for output in manifest.outputs}
    if set(early.outputs) != kinds.keys() - set(cut.head_outputs):
        raise ValueError(
            f"the early exit of {cut.name!r} does not make what the head leaves open of the model's outputs"
        )
    if all(kinds[name] == "tensor" for name in early.outputs):
        raise ValueError(f"the early exit of {cut.name!r} is no classifier's")
    if len(early.qualities) != len(cut.qualities):
        raise ValueError(f"the early exit of {cut.name!r} is measured at {len(early.qualities)} qualities of the cut's")
    for quality in early.qualities:
        if any(a.threshold >= b.threshold for a, b in itertools.pairwise(quality.points)):
            raise ValueError(f"the thresholds of {cut.name!r}'s early exit do not rise")


def _check_crossing(cut: Cut, tensor: CrossingTensor) -> None:
    count = len(cut.qualities)
    if tensor.levels and len(tensor.levels) != count:
        raise ValueError(f"{tensor.name!r} has {len(tensor.levels)} alphabets for {count} qualities")
    if tensor.tables and len(tensor.tables) != count:
        raise ValueError(f"{tensor.name!r} has {len(tensor.tables)} tables for {count} qualities")
    if tensor.levels and tensor.symbols.dtype not in ("uint8", "uint16"):
        raise ValueError(f"{tensor.name!r} is quantised to {tensor.symbols.dtype}, not to uint8 or uint16")
    if tensor.symbols.dtype == "uint8" and max(tensor.levels, default=0) > 1 << 8:
        raise ValueError(f"{tensor.name!r} has more than 256 levels in uint8")
    if tensor.channel_axis is not None and tensor.channel_axis >= len(tensor.symbols.shape):
        raise ValueError(f"{tensor.name!r} has no axis {tensor.channel_axis}")
