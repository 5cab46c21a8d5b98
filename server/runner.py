"""A batch of jobs through an engine: each ends with a reply of its own, whatever its neighbours do."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from ..runtime.answer import Reply, ServerTiming
from ..runtime.errors import DeadlineError, InternalError, NarrowsError
from .engine import Engine, Prepared
from .job import Finished, Job
from .logs import fields

_log = logging.getLogger(__name__)

Array = NDArray[Any]
Shape = Callable[[Sequence[Job], Sequence[dict[str, Array]], Sequence[ServerTiming]], list[Reply]]
"""Brings the outputs of frames that ran together into the form that each one's sender wants."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A job whose frame has been decoded."""

    job: Job
    prepared: Prepared
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Ran:
    """Jobs that shared a run, and what the graph said to each."""

    batch: list[Ready]
    outputs: list[dict[str, Array]]
    start_s: float
    tail_s: float
    frames: int
    """That shared the run."""


class BatchRunner:
    """Decodes, runs and answers batches; safe to use from several threads at once.

    Args:
        engine: the graph.
        shape: makes replies of the outputs of a run.
        observe: told of every run that succeeded: its frames and its seconds.
    """

    def __init__(self, engine: Engine, shape: Shape, observe: Callable[[int, float], None]) -> None:
        self._engine = engine
        self._shape = shape
        self._observe = observe

    def decode(self, job: Job) -> Ready | Reply:
        """A job that can be run, or how it has ended: damaged, or late."""
        try:
            return self._prepare(job)
        except NarrowsError as error:
            return Reply(job.frame.id, error=error)
        except Exception:  # noqa: BLE001 - see _internal
            return _internal(job)

    def run(self, ready: list[Ready]) -> tuple[list[Ran], Finished]:
        """What the graph said to a batch, and the jobs that ended without: too late, or refused by the graph."""
        ran: list[Ran] = []
        finished: Finished = []
        start_s = time.monotonic()
        in_time = []
        for one in ready:
            if start_s >= one.job.expires_s:
                finished.append((one.job, Reply(one.job.frame.id, error=_late(one.job, start_s))))
            elif not one.job.cancelled:
                in_time.append(one)
        in_time.sort(key=_shapes)
        for _, same in itertools.groupby(in_time, key=_shapes):
            self._run(list(same), ran, finished)
        return ran, finished

    def answer(self, ran: Ran) -> Finished:
        """Every job of a run with its reply."""
        jobs = [one.job for one in ran.batch]
        timings = [_timing(one, ran) for one in ran.batch]
        try:
            return list(zip(jobs, self._shape(jobs, ran.outputs, timings), strict=True))
        except Exception:  # noqa: BLE001 - see _internal
            if len(jobs) == 1:
                return [(jobs[0], _internal(jobs[0]))]
            alone = zip(ran.batch, ran.outputs, strict=True)
            return [pair for one, own in alone for pair in self.answer(replace(ran, batch=[one], outputs=[own]))]

    def _prepare(self, job: Job) -> Ready:
        start_s = time.monotonic()
        _check_deadline(job, start_s)
        if job.shared is None:
            prepared = self._engine.prepare(job.frame)
        else:
            prepared = job.shared.prepare(self._engine, job.frame)
        return Ready(job, prepared, start_s, time.monotonic())

    def _run(self, batch: list[Ready], ran: list[Ran], finished: Finished) -> None:
        """Run frames of equal shapes together; where that fails, each alone, so that one fault stays with its frame."""
        start_s = time.monotonic()
        try:
            outputs = self._engine.run([one.prepared for one in batch])
        except Exception as error:  # noqa: BLE001 - see _internal
            job = batch[0].job
            if len(batch) > 1:
                for one in batch:
                    self._run([one], ran, finished)
            elif isinstance(error, NarrowsError):
                finished.append((job, Reply(job.frame.id, error=error)))
            else:
                finished.append((job, _internal(job)))
        else:
            tail_s = time.monotonic() - start_s
            self._observe(len(batch), tail_s)
            ran.append(Ran(batch, outputs, start_s, tail_s, len(batch)))


def _shapes(one: Ready) -> tuple[tuple[int, ...], ...]:
    return one.prepared.shapes


def _timing(one: Ready, ran: Ran) -> ServerTiming:
    queue_s = one.start_s - one.job.taken_s + ran.start_s - one.end_s
    return ServerTiming(queue_s * 1e3, (one.end_s - one.start_s) * 1e3, ran.tail_s * 1e3, ran.frames)


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
