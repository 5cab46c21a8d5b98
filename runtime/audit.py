"""What an audit found, as the file that the partitioner writes and the report reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from .errors import UsageError

SCHEMA = 1
MAX_BYTES = 64 << 20
"""Of a file."""

SAYS = (
    "A small network was trained on other pictures to make the input again out of what crosses the link; this is what "
    "it makes of pictures that it has not seen. It is a lower bound: an attacker with more pictures, a larger network "
    "or more time gets more, and a face or a number plate may be readable where the figures look low. What the network "
    "does not get back is not thereby safe. The mean picture is what anyone knows without looking; the JPEG of equal "
    "size is what those bytes could show of the picture if they were spent on nothing else."
)

Picture = Annotated[str, msgspec.Meta(pattern=r"^data:image/png;base64,[A-Za-z0-9+/=]*$")]


@dataclass(frozen=True, slots=True)
class Leak:
    """How much of the held-out pictures came back one way."""

    what: str
    """What the reconstruction had to go by."""
    bytes: float | None
    """Mean payload of a frame; None for what takes none."""
    psnr_db: float
    """Mean peak signal-to-noise ratio."""
    ssim: float
    """Mean structural similarity (Wang et al., IEEE TIP 2004): 1 for the same picture."""
    steps: int | None = None
    """Of the network's training; None for a baseline."""


@dataclass(frozen=True, slots=True)
class Examples:
    """The same few held-out pictures, made again one way."""

    what: str
    pictures: tuple[Picture, ...]
    """PNG files as data URLs."""


@dataclass(frozen=True, slots=True)
class Audit:
    """All that was found of one cut."""

    schema: int
    model: str
    bundle: str
    """Digest."""
    cut: str
    trained_on: int
    """Pictures."""
    tried_on: int
    """Other pictures, held out."""
    size: tuple[int, int]
    """Height and width at which pictures were compared."""
    seed: int
    rows: tuple[Leak, ...]
    examples: tuple[Examples, ...]
    says: str = SAYS
    cut_short: bool = False
    """The time that was given ended the training before its last step."""


def write(audit: Audit, path: Path) -> None:
    """Write it as JSON.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        path.write_bytes(msgspec.json.encode(audit) + b"\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror or error})") from None


def read(path: Path) -> Audit:
    """Read one that may come from anywhere.

    Raises:
        UsageError: it is none, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror or error})") from None
    if len(text) > MAX_BYTES:
        raise UsageError(f"{path} has more than {MAX_BYTES} bytes; an audit has not")
    try:
        schema = msgspec.json.decode(text, type=dict[str, Any]).get("schema")
        if schema != SCHEMA:
            raise UsageError(f"{path} has audit schema {schema!r}; this release reads {SCHEMA}. Audit again")
        return msgspec.json.decode(text, type=Audit)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(f"{path} is no audit that narrows writes ({error})") from None
