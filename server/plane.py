"""The data plane: a frame for a model in, a reply out. Plain Python; nothing here knows gRPC.

Everything in this module runs on one event loop; decoding and graphs run on the batchers' threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..runtime.answer import Array, Form, Reply, ServerTiming, Wanted, best_of_each, classifier
from ..runtime.errors import DrainingError, FrameError, FrameTooLargeError, NarrowsError, QualityError
from ..runtime.frame import Frame, Limits, Mode
from ..runtime.manifest import OutputSpec
from .batcher import Batcher, BatchOptions
from .catalogue import Catalogue, Served
from .clients import Client, ClientLimits, Holdings
from .fan import Fan
from .job import Finished, Job
from .repository import WHOLE, Loaded, Model
from .tally import Observer

Taken = Job | Fan
"""A frame that has no outcome yet."""


@dataclass(frozen=True, slots=True)
class PlaneOptions:
    """Caps and sizes of the data plane."""

    limits: Limits = field(default_factory=Limits)
    clients: ClientLimits = field(default_factory=ClientLimits)
    batch: BatchOptions = field(default_factory=BatchOptions)


class DataPlane:
    """Frames to batchers, replies back to who sent them.

    plane = DataPlane(PlaneOptions())
    plane.catalogue.apply(repository.look())
    reply = await plane.infer(plane.catalogue.find("resnet56"), frame, Wanted(), Client("me"))
    await plane.close()
    """

    def __init__(self, options: PlaneOptions) -> None:
        """Has to be called on the event loop."""
        self.limits = options.limits
        self.catalogue = Catalogue(self._serve)
        self.holdings = Holdings(options.clients)
        self.observers: list[Observer] = []
        self.drain_begun = asyncio.Event()
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._batch = options.batch
        self._loop = asyncio.get_running_loop()

    @property
    def draining(self) -> bool:
        """No new frame is taken."""
        return self.drain_begun.is_set()

    def submit(
        self, served: Served, frame: Frame, wanted: Wanted, client: Client, done: Callable[[Reply], None]
    ) -> Taken:
        """Take a frame in.

        Args:
            served: the model whose frame it is; the caller keeps it in use (`Catalogue.using`).
            frame: not believed yet.
            wanted: the form of the answer.
            client: whose lane it queues in.
            done: called on the event loop with the outcome, exactly once unless the job is cancelled, and never before
                this method has returned.

        Returns:
            What was taken in, for `cancel`.

        Raises:
            FrameTooLargeError: more bytes than the cap; found before anything is queued or decoded.
            QualityError: a cut or a tail that the bundle does not have.
            OverloadedError: no room in the queue, or too many bytes in flight.
            DrainingError: the server is going down.
        """
        try:
            tails = self._find(served, frame, wanted)
            if len(tails) == 1:
                (batcher,) = tails.values()
                return self._submit(Job(frame, wanted, client, done, frame.payload_bytes, batcher))
            return self._submit_fan(frame, wanted, client, done, tails)
        except NarrowsError as error:
            for observer in self.observers:
                observer.refused(served.model.name, error)
            raise

    def _submit_fan(
        self,
        frame: Frame,
        wanted: Wanted,
        client: Client,
        done: Callable[[Reply], None],
        tails: Mapping[str, Batcher],
    ) -> Fan:
        """One frame into the queues of several tails, or into none."""
        fan = Fan(tuple(tails), done)
        size = frame.payload_bytes
        try:
            for name, batcher in tails.items():
                part = partial(self._part_done, fan, name)
                fan.jobs[name] = self._submit(Job(frame, wanted, client, part, size, batcher, shared=fan.shared))
                size = 0  # the bytes are there once
        except BaseException:
            self.cancel(fan)
            raise
        return fan

    def _part_done(self, fan: Fan, tail: str, reply: Reply) -> None:
        outcome = fan.take(tail, reply)
        if outcome is not None:
            self.cancel(fan)  # those that are left, after an error
            fan.done(outcome)

    def _submit(self, job: Job) -> Job:
        if self.draining:
            raise DrainingError("the server is going down and takes no new frame; connect again")
        if job.size > self.limits.max_frame_bytes:
            raise FrameTooLargeError(
                f"a frame of {job.size} bytes, where {self.limits.max_frame_bytes} are allowed; "
                "lower the quality, or raise the server's limit"
            )
        self.holdings.take(job.client, job.size)
        self._in_flight += 1
        self._idle.clear()
        try:
            displaced = job.batcher.submit(job)
        except BaseException:
            self._release(job)
            raise
        if displaced is not None:
            self._finish(displaced, Reply(displaced.frame.id, error=job.batcher.overloaded()))
        return job

    def cancel(self, taken: Taken) -> None:
        """Forget a frame whose sender is gone."""
        for job in (taken,) if isinstance(taken, Job) else taken:
            job.batcher.cancel(job)
            self._release(job)

    async def infer(self, served: Served, frame: Frame, wanted: Wanted, client: Client) -> Reply:
        """One frame, one reply. Cancelling the caller cancels the frame.

        Raises:
            NarrowsError: as `submit`; what goes wrong later stands in the reply.
        """
        (reply,) = await self.infer_many(served, [frame], wanted, client)
        return reply

    async def infer_many(
        self, served: Served, frames: Sequence[Frame], wanted: Wanted, client: Client
    ) -> Sequence[Reply]:
        """Several frames, their replies in the same order. Cancelling the caller cancels those that are left.

        Raises:
            NarrowsError: as `submit`, for any of them; what goes wrong later stands in the replies.
        """
        waiting: list[tuple[Taken, asyncio.Future[Reply]]] = []
        with self.catalogue.using(served):
            try:
                for frame in frames:
                    reply: asyncio.Future[Reply] = self._loop.create_future()
                    waiting.append((self.submit(served, frame, wanted, client, reply.set_result), reply))
                return [await reply for _, reply in waiting]
            finally:
                for taken, reply in waiting:
                    if reply.cancelled() or not reply.done():
                        self.cancel(taken)

    async def idle(self) -> None:
        """Wait until nothing that was taken in is without its outcome."""
        await self._idle.wait()

    async def close(self) -> None:
        """Run what is queued and end the threads."""
        await self.catalogue.close()

    def _release(self, job: Job) -> None:
        self.holdings.release(job.client, job.size)
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()

    def _find(self, served: Served, frame: Frame, wanted: Wanted) -> Mapping[str, Batcher]:
        """Where a frame queues, by the names of the tails that are to answer it."""
        name = served.model.name
        if frame.mode is not Mode.SPLIT:
            if served.whole is None:
                raise FrameError(f"bundle {name!r} does not bring its whole model here; send split frames")
            own = {cut.tail_name for cut in served.model.bundle.manifest.cuts}
            if not own.issuperset(wanted.tails):
                raise FrameError("the whole model answers for a cut's own tail alone; send split frames for others")
            return {WHOLE: served.whole}
        try:
            tails = served.tails[frame.cut]
        except IndexError:
            raise QualityError(f"cut {frame.cut} is unknown; bundle {name!r} has 0…{len(served.tails) - 1}") from None
        cut = served.model.bundle.manifest.cuts[frame.cut]
        cut.check_tails(wanted.tails)
        return {tail: tails[tail] for tail in wanted.tails or (cut.tail_name,)}

    def _serve(self, model: Model) -> Served:
        def batcher(one: Loaded) -> Batcher:
            name, shape = f"{model.name}/{one.name}", _Shaper(one.outputs)
            return Batcher(name, one.engine, shape, self._hand_over, self._batch, cost=one.cost, runs=one.runs)

        tails = tuple({name: batcher(one) for name, one in cut.items()} for cut in model.tails)
        return Served(model, tails, batcher(model.whole) if model.whole else None)

    def _hand_over(self, finished: Finished) -> None:
        """From a worker to the event loop: one wake-up for the whole batch."""
        self._loop.call_soon_threadsafe(self._finish_all, finished)

    def _finish_all(self, finished: Finished) -> None:
        for job, reply in finished:
            if not job.cancelled:
                self._finish(job, reply)

    def _finish(self, job: Job, reply: Reply) -> None:
        self._release(job)
        job.done(reply)
        for observer in self.observers:
            observer.finished(job, reply)


class _Shaper:
    """Brings the outputs of a run into the form that was asked for."""

    def __init__(self, outputs: Sequence[OutputSpec]) -> None:
        self._classifier = classifier(outputs)

    def __call__(
        self, jobs: Sequence[Job], outputs: Sequence[dict[str, Array]], timings: Sequence[ServerTiming]
    ) -> list[Reply]:
        replies = [
            Reply(job.frame.id, own, timing=timing) for job, own, timing in zip(jobs, outputs, timings, strict=True)
        ]
        best = self._classifier
        wanted = [i for i, job in enumerate(jobs) if job.wanted.form is Form.TOP]
        if best is None or not wanted or best.tensor.name not in outputs[0]:
            return replies
        scores = np.stack([outputs[i][best.tensor.name] for i in wanted])
        most = max(jobs[i].wanted.top for i in wanted)
        for i, top in zip(wanted, best_of_each(scores, best.kind, most), strict=True):
            replies[i] = Reply(jobs[i].frame.id, top=top[: jobs[i].wanted.top], timing=timings[i])
        return replies
