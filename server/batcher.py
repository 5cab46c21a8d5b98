"""Frames of many clients through one graph: what is queued when a worker is free becomes its next batch.

Nothing waits for company. At low load a frame finds a free worker and runs alone; the busier the graph, the more frames
gather while it runs, and the larger the next batch.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from ..runtime.answer import Reply, ServerTiming, Wanted
from ..runtime.errors import DeadlineError, DrainingError, InternalError, NarrowsError, OverloadedError, UsageError
from ..runtime.frame import Frame
from .engine import Engine, Prepared
from .fair_queue import FairQueue

_log = logging.getLogger(__name__)

Array = NDArray[Any]
Shape = Callable[[Frame, Wanted, dict[str, Array], ServerTiming], Reply]
"""Brings a frame's outputs into the form that its sender wants."""


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How frames gather."""

    max_batch: int = 32
    """Frames of one run, at most."""
    queue: int = 256
    """Frames that may wait for a worker; more are refused."""
    workers: int = 1
    """Threads that decode and run. With two, one decodes while the other's graph runs."""

    def __post_init__(self) -> None:
        if min(self.max_batch, self.queue, self.workers) < 1:
            raise UsageError("batch size, queue length and workers must be 1 or more")


@dataclass(eq=False, slots=True)
class Job:
    """A frame on its way through the server."""

    frame: Frame
    wanted: Wanted
    client: Hashable
    done: Callable[[Reply], None]
    """Called with the outcome, once, on the event loop; never after `Batcher.cancel`."""
    taken_s: float = field(default_factory=time.monotonic)
    """When the frame came in, on this machine's monotonic clock."""
    cancelled: bool = False

    @property
    def expires_s(self) -> float:
        """When its answer is of no use any more."""
        return self.taken_s + self.frame.deadline_ms / 1000 if self.frame.deadline_ms else math.inf


Finished = list[tuple[Job, Reply]]


class Batcher:
    """The queue and the workers of one graph.

    Args:
        name: for the log and the threads' names.
        engine: the graph.
        shape: makes a reply of a frame's outputs; runs on a worker.
        deliver: takes the replies of a whole batch; runs on a worker, once for each batch.
        options: sizes.
    """

    def __init__(
        self, name: str, engine: Engine, shape: Shape, deliver: Callable[[Finished], None], options: BatchOptions
    ) -> None:
        self.name = name
        self._engine = engine
        self._shape = shape
        self._deliver = deliver
        self._options = options
        self._queue: FairQueue[Job] = FairQueue(options.queue)
        self._filled = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"tail {name} {number}", daemon=True)
            for number in range(options.workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> Job | None:
        """Queue a job. Never blocks for longer than another thread holds the lock.

        Returns:
            Another client's job that had to leave for this one, or None. Its sender is owed an outcome.

        Raises:
            OverloadedError: the queue is full, and this client has its share of it.
            DrainingError: the batcher is closed.
        """
        with self._filled:
            if self._closed:
                raise DrainingError("the model is being unloaded; connect again")
            displaced = self._queue.push(job.client, job)
            if displaced is job:
                raise overloaded(self._options.queue)
            self._filled.notify()
        return displaced

    def cancel(self, job: Job) -> None:
        """Forget a job: out of the queue, or, where it runs already, its outcome goes nowhere."""
        with self._filled:
            job.cancelled = True
            self._queue.remove(job.client, job)

    def close(self) -> None:
        """Take no more jobs, run what is queued, end the workers."""
        with self._filled:
            self._closed = True
            self._filled.notify_all()
        for thread in self._threads:
            thread.join()

    def __len__(self) -> int:
        """Jobs that wait for a worker."""
        return len(self._queue)

    def _work(self) -> None:
        while batch := self._take():
            self._deliver(self._compute(batch))

    def _take(self) -> list[Job]:
        """The next batch; empty when the batcher is closed and all is done."""
        with self._filled:
            while not self._queue and not self._closed:
                self._filled.wait()
            return self._queue.take(self._options.max_batch)

    def _compute(self, batch: list[Job]) -> Finished:
        finished: Finished = []
        ready: list[_Ready] = []
        for job in batch:
            try:
                ready.append(self._prepare(job))
            except NarrowsError as error:
                finished.append((job, Reply(job.frame.id, error=error)))
            except Exception:  # noqa: BLE001 - see _internal
                finished.append((job, _internal(job)))
        ready.sort(key=lambda one: one.prepared.shapes)
        for _, same in itertools.groupby(ready, key=lambda one: one.prepared.shapes):
            finished += self._run(list(same))
        return finished

    def _prepare(self, job: Job) -> _Ready:
        start = time.monotonic()
        if start >= job.expires_s:
            raise DeadlineError(
                f"the frame's {job.frame.deadline_ms} ms were over after {(start - job.taken_s) * 1e3:.0f} ms in the "
                "queue; it was not computed"
            )
        prepared = self._engine.prepare(job.frame)
        return _Ready(job, prepared, start, time.monotonic() - start)

    def _run(self, batch: list[_Ready]) -> Finished:
        """Run frames of equal shapes together; where that fails, each alone, so that one fault stays with its frame."""
        start = time.monotonic()
        try:
            outputs = self._engine.run([one.prepared for one in batch])
            tail_s = time.monotonic() - start
            return [
                (one.job, self._reply(one, own, tail_s, len(batch))) for one, own in zip(batch, outputs, strict=True)
            ]
        except Exception as error:  # noqa: BLE001 - see _internal
            if len(batch) > 1:
                return [pair for one in batch for pair in self._run([one])]
            job = batch[0].job
            if isinstance(error, NarrowsError):
                return [(job, Reply(job.frame.id, error=error))]
            return [(job, _internal(job))]

    def _reply(self, one: _Ready, outputs: dict[str, Array], tail_s: float, batch: int) -> Reply:
        queue_s = one.start_s - one.job.taken_s
        timing = ServerTiming(queue_s * 1e3, one.decode_s * 1e3, tail_s * 1e3, batch)
        return self._shape(one.job.frame, one.job.wanted, outputs, timing)


@dataclass(frozen=True, slots=True)
class _Ready:
    job: Job
    prepared: Prepared
    start_s: float
    decode_s: float


def overloaded(queue: int) -> OverloadedError:
    """What a frame gets that found no room."""
    return OverloadedError(f"the queue of {queue} frames is full; send less, or again in a moment")


def _internal(job: Job) -> Reply:
    # A graph or a coder may raise anything at all: that costs the frame and not the worker, which serves everybody.
    _log.exception("frame %d of client %s failed in a way that has no error of its own", job.frame.id, job.client)
    return Reply(job.frame.id, error=InternalError("the server failed on this frame; its log says why"))
