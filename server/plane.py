"""The data plane: a frame for a model in, a reply out. Plain Python; nothing here knows gRPC.

Everything in this module runs on one event loop; decoding and graphs run on the batchers' threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

from ..runtime.answer import Array, Form, Reply, ServerTiming, Wanted, best_classes, classifier
from ..runtime.errors import DrainingError, FrameTooLargeError, QualityError
from ..runtime.frame import Frame, Limits
from ..runtime.manifest import Manifest
from .batcher import Batcher, BatchOptions, Finished, Job, overloaded
from .repository import Model, Repository


class DataPlane:
    """Frames to batchers, replies back to who sent them.

    plane = DataPlane(repository, Limits(), BatchOptions())
    reply = await plane.infer(plane.repository.find("resnet56"), frame, Wanted())
    plane.close()
    """

    def __init__(self, repository: Repository, limits: Limits, options: BatchOptions) -> None:
        """Start the batchers; has to be called on the event loop."""
        self.repository = repository
        self.limits = limits
        self.draining = False
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._batchers = {
            (model.digest, index): self._batcher(model, index)
            for model in repository
            for index in range(len(model.tails))
        }

    def submit(
        self, model: Model, frame: Frame, wanted: Wanted, client: Hashable, done: Callable[[Reply], None]
    ) -> Job:
        """Take a frame in.

        Args:
            model: whose frame it is.
            frame: not believed yet.
            wanted: the form of the answer.
            client: whose lane it queues in.
            done: called on the event loop with the outcome, exactly once unless the job is cancelled, and never before
                this method has returned.

        Returns:
            The job, for `cancel`.

        Raises:
            FrameTooLargeError: more bytes than the cap; found before anything is queued or decoded.
            QualityError: a cut that the bundle does not have.
            OverloadedError: no room in the queue.
            DrainingError: the server is going down.
        """
        if self.draining:
            raise DrainingError("the server is going down and takes no new frame; connect again")
        if frame.payload_bytes > self.limits.max_frame_bytes:
            raise FrameTooLargeError(
                f"a frame of {frame.payload_bytes} bytes, where {self.limits.max_frame_bytes} are allowed; "
                "lower the quality, or raise the server's limit"
            )
        job = Job(frame, wanted, client, done)
        displaced = self._find(model, frame).submit(job)
        if displaced is not None:
            displaced.done(Reply(displaced.frame.id, error=overloaded(self._options.queue)))
        return job

    def cancel(self, model: Model, job: Job) -> None:
        """Forget a frame whose sender is gone."""
        self._find(model, job.frame).cancel(job)

    async def infer(self, model: Model, frame: Frame, wanted: Wanted, client: Hashable = None) -> Reply:
        """One frame, one reply. Cancelling the caller cancels the frame.

        Raises:
            NarrowsError: as `submit`; what goes wrong later stands in the reply.
        """
        reply: asyncio.Future[Reply] = self._loop.create_future()
        job = self.submit(model, frame, wanted, client, reply.set_result)
        try:
            return await reply
        finally:
            if not reply.done() or reply.cancelled():
                self.cancel(model, job)

    def close(self) -> None:
        """Run what is queued and end the threads; blocks until they have ended."""
        for batcher in self._batchers.values():
            batcher.close()

    def _find(self, model: Model, frame: Frame) -> Batcher:
        try:
            return self._batchers[model.digest, frame.cut]
        except KeyError:
            raise QualityError(
                f"cut {frame.cut} is unknown; bundle {model.name!r} has 0…{len(model.tails) - 1}"
            ) from None

    def _batcher(self, model: Model, index: int) -> Batcher:
        engine = model.tails[index]
        shape = _Shaper(model.bundle.manifest)
        return Batcher(f"{model.name}/{engine.tail.cut.name}", engine, shape, self._hand_over, self._options)

    def _hand_over(self, finished: Finished) -> None:
        """From a worker to the event loop: one wake-up for the whole batch."""
        self._loop.call_soon_threadsafe(_call_back, finished)


def _call_back(finished: Finished) -> None:
    for job, reply in finished:
        if not job.cancelled:
            job.done(reply)


class _Shaper:
    """Brings outputs into the form that was asked for."""

    def __init__(self, manifest: Manifest) -> None:
        self._classifier = classifier(manifest)

    def __call__(self, frame: Frame, wanted: Wanted, outputs: dict[str, Array], timing: ServerTiming) -> Reply:
        best = self._classifier
        if wanted.form is Form.TENSORS or best is None or best.tensor.name not in outputs:
            return Reply(frame.id, outputs, timing=timing)
        top = best_classes(outputs[best.tensor.name], best.kind, wanted.top)
        return Reply(frame.id, top=top, timing=timing)
