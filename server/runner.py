"""A batch of jobs through an engine: each ends with a reply of its own, whatever its neighbours do."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ..runtime.answer import Reply, ServerTiming, Wanted
from ..runtime.errors import DeadlineError, InternalError, NarrowsError
from ..runtime.frame import Frame
from .engine import Engine, Prepared
from .job import Finished, Job
from .logs import fields

_log = logging.getLogger(__name__)

Array = NDArray[Any]
Shape = Callable[[Frame, Wanted, dict[str, Array], ServerTiming], Reply]
"""Brings a frame's outputs into the form that its sender wants."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A job whose frame has been decoded."""

    job: Job
    prepared: Prepared
    start_s: float
    end_s: float


class BatchRunner:
    """Decodes, runs and answers batches; safe to use from several threads at once.

    Args:
        engine: the graph.
        shape: makes a reply of a frame's outputs.
        observe: told of every run that succeeded: its frames and its seconds.
    """

    def __init__(self, engine: Engine, shape: Shape, observe: Callable[[int, float], None]) -> None:
        self._engine = engine
        self._shape = shape
        self._observe = observe

    def decode(self, jobs: list[Job]) -> tuple[list[Ready], Finished]:
        """Jobs that can be run, and those that have ended already: damaged, or late."""
        ready: list[Ready] = []
        finished: Finished = []
        for job in jobs:
            try:
                ready.append(self._prepare(job))
            except NarrowsError as error:
                finished.append((job, Reply(job.frame.id, error=error)))
            except Exception:  # noqa: BLE001 - see _internal
                finished.append((job, _internal(job)))
        return ready, finished

    def run(self, ready: list[Ready]) -> Finished:
        """Every job of a batch with its reply, in any order."""
        finished: Finished = []
        ready.sort(key=lambda one: one.prepared.shapes)
        for _, same in itertools.groupby(ready, key=lambda one: one.prepared.shapes):
            finished += self._run(list(same))
        return finished

    def _prepare(self, job: Job) -> Ready:
        start_s = time.monotonic()
        _check_deadline(job, start_s)
        if job.shared is None:
            prepared = self._engine.prepare(job.frame)
        else:
            prepared = job.shared.prepare(self._engine, job.frame)
        return Ready(job, prepared, start_s, time.monotonic())

    def _run(self, batch: list[Ready]) -> Finished:
        """Run frames of equal shapes together."""
        start_s = time.monotonic()
        in_time = [one for one in batch if start_s < one.job.expires_s and not one.job.cancelled]
        late = [one.job for one in batch if start_s >= one.job.expires_s]
        finished = [(job, Reply(job.frame.id, error=_late(job, start_s))) for job in late]
        return finished + (self._run_now(in_time, start_s) if in_time else [])

    def _run_now(self, batch: list[Ready], start_s: float) -> Finished:
        """Run together; where that fails, each alone, so that one fault stays with its frame."""
        try:
            outputs = self._engine.run([one.prepared for one in batch])
            tail_s = time.monotonic() - start_s
            self._observe(len(batch), tail_s)
            return [
                (one.job, self._reply(one, own, start_s, tail_s, len(batch)))
                for one, own in zip(batch, outputs, strict=True)
            ]
        except Exception as error:  # noqa: BLE001 - see _internal
            if len(batch) > 1:
                return [pair for one in batch for pair in self._run_now([one], time.monotonic())]
            job = batch[0].job
            if isinstance(error, NarrowsError):
                return [(job, Reply(job.frame.id, error=error))]
            return [(job, _internal(job))]

    def _reply(self, one: Ready, outputs: dict[str, Array], start_s: float, tail_s: float, batch: int) -> Reply:
        queue_s = one.start_s - one.job.taken_s + start_s - one.end_s
        timing = ServerTiming(queue_s * 1e3, (one.end_s - one.start_s) * 1e3, tail_s * 1e3, batch)
        return self._shape(one.job.frame, one.job.wanted, outputs, timing)


def _check_deadline(job: Job, now_s: float) -> None:
    if now_s >= job.expires_s:
        raise _late(job, now_s)


def _late(job: Job, now_s: float) -> DeadlineError:
    return DeadlineError(
        f"the frame's {job.frame.deadline_ms} ms were over after {(now_s - job.taken_s) * 1e3:.0f} ms in the queue; "
        "it was not computed"
    )


def _internal(job: Job) -> Reply:
    # A graph or a coder may raise anything at all: that costs the frame and not the worker, which serves everybody.
    known = job.client.request
    facts = {"request": known, **fields(client=job.client.name, route=job.route, frame=job.frame.id)}
    _log.exception("a frame failed in a way that has no error of its own", extra=facts)
    text = f"the server failed on this frame; its log says why, at request {known or 'unknown'}"
    return Reply(job.frame.id, error=InternalError(text))
