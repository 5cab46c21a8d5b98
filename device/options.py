"""How a device works."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from ..runtime import codec
from ..runtime.answer import Wanted
from ..runtime.cost import PowerModel
from ..runtime.errors import UsageError
from ..runtime.link import LinkOptions
from ..runtime.point import Point
from ..runtime.session import SessionOptions
from .live import Drop
from .oip import OpenInference
from .policies import Policy, Static

Rescue = Literal["best", "exit", "local", "none"]


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """How a device works."""

    cut: str | None = None
    """Name of the bundle's cut to split at; its first where none is given."""
    quality: int | None = None
    """Quality of frames that name none; the cut's best where none is given."""
    wanted: Wanted = field(default_factory=Wanted)
    """Full output tensors, or the best classes alone."""
    coders: tuple[str, ...] = field(default_factory=lambda: tuple(codec.labels()))
    """Labels of the coders that frames may use, best first; the server takes the first that it knows. On a fast link
    "raw/1" can be quicker than any coding."""
    policy: Policy = field(default_factory=Static)
    """Chooses each frame's operating point."""
    deadline_ms: float | None = None
    """When an answer is due, from the input being there. Where the bundle carries an early exit or a whole model for
    the device, that answers what the server does not in time; otherwise the frame ends in an error then."""
    fallback: Rescue = "best"
    """What answers on the device, of what the bundle carries, when no server does in time. `best`: the whole model
    where it takes less than half of the deadline, and the early exit otherwise."""
    exit_confidence: float | None = None
    """Ask the early exit at the cut first, and send nothing where it is at least so sure, 0…1. None: it is never asked
    before the server."""
    offload: int | Point | None = None
    """Quality of the JPEG, 1 to 95, or a point such as `Point("offload", quality=80, format="webp")`, where the policy
    may also send the picture itself to a server that holds the whole model; None where it may not."""
    open_inference: OpenInference | None = None
    """The server is a stock one of the Open Inference Protocol, and this model there is the cut's tail: symbols go
    uncoded. None for Narrows' own server."""
    max_payload_bytes: int | None = None
    """Most bytes of a frame's coded symbols, whatever is in the picture: over it, the frame is made again at a lower
    quality, and where none fits, the device answers itself. The server's own cap holds besides."""
    timeout_s: float = 10.0
    """A frame that has no answer by then ends in an error, or, with a fallback, on the device."""
    stall_s: float | None = None
    """Silence of a server that owes an answer, after which the connection is made anew and what it owes is sent again;
    a fifth of `timeout_s` where none is given."""
    window: int = 8
    """Frames between their input and the caller, at most; how many it takes to keep the slowest stage busy, the device
    finds out."""
    drop: Drop = "block"
    """What happens to frames that a source gives faster than they can be answered."""
    session: SessionOptions = field(default_factory=SessionOptions)
    try_providers: bool = True
    """Run the graphs on the execution provider that is quickest here, found by trial once and then remembered, in place
    of `session.providers`. Where ONNX Runtime has nothing but the CPU, nothing is tried."""
    link: LinkOptions = field(default_factory=LinkOptions)
    power: PowerModel = field(default_factory=PowerModel)
    """What the policy reckons energy with."""

    def __post_init__(self) -> None:
        if not self.coders:
            raise UsageError(f"at least one coder is needed, of {', '.join(codec.labels())}")
        for label in self.coders:
            codec.by_label(label)
        if self.open_inference is not None and (self.offload is not None or self.wanted.tails):
            raise UsageError("a stock server holds one tail: no further tails, and no whole model for pictures")
        if isinstance(self.offload, Point) and (self.offload.mode != "offload" or self.offload.quality is None):
            raise UsageError(f"{self.offload} sends no picture; an offload point has a quality")
        if self.window < 1:
            raise UsageError(f"a window of {self.window} frames is none; give 1 or more")
        if self.timeout_s <= 0 or (self.stall_s is not None and self.stall_s <= 0):
            raise UsageError("timeouts must be positive")
        if self.max_payload_bytes is not None and self.max_payload_bytes < 1:
            raise UsageError(f"a cap of {self.max_payload_bytes} bytes lets no frame through; give 1 or more")
        if self.drop not in get_args(Drop):
            raise UsageError(f"a drop policy is one of {', '.join(get_args(Drop))}, not {self.drop!r}")
        if self.fallback not in get_args(Rescue):
            raise UsageError(f"a fallback is one of {', '.join(get_args(Rescue))}, not {self.fallback!r}")
        if self.exit_confidence is not None and not 0 <= self.exit_confidence <= 1:
            raise UsageError(f"a confidence is between 0 and 1, not {self.exit_confidence}")
        if self.deadline_ms is not None and self.deadline_ms <= 0:
            raise UsageError(f"a deadline of {self.deadline_ms} ms is over before it begins")

    def may_rescue(self, what: Literal["exit", "local"]) -> bool:
        """Whether the early exit or the whole model may answer in a server's place."""
        return self.fallback in ("best", what)
