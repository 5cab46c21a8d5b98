"""A frame on its way through the server."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..runtime.answer import Reply, Wanted
from ..runtime.frame import Frame
from .clients import Client

if TYPE_CHECKING:
    from .batcher import Batcher
    from .fan import SharedFrame


@dataclass(eq=False, slots=True)
class Job:
    """One frame, who sent it, and who waits for its outcome."""

    frame: Frame
    wanted: Wanted
    client: Client
    """Whose lane it queues in."""
    done: Callable[[Reply], None]
    """Called with the outcome, once, on the event loop; never after `Batcher.cancel`."""
    size: int
    """Bytes of its payloads."""
    batcher: Batcher
    """Where it queues."""
    taken_s: float = field(default_factory=time.monotonic)
    """When the frame came in, on this machine's monotonic clock."""
    cancelled: bool = False
    shared: SharedFrame | None = None
    """Where its frame is decoded for other tails, too."""

    @property
    def route(self) -> str:
        """Model and cut, as "model/cut", and behind another slash the name of a further tail."""
        return self.batcher.name

    @property
    def expires_s(self) -> float:
        """When its answer is of no use any more."""
        return self.taken_s + self.frame.deadline_ms / 1000 if self.frame.deadline_ms else math.inf


Finished = list[tuple[Job, Reply]]
"""What a batch ended with: every one of its jobs, once."""
