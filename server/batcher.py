"""Frames of many clients through one graph: what is queued when a worker is free becomes its next batch.

Nothing waits for company. At low load a frame finds a free worker and runs alone; the busier the graph, the more frames
gather while it runs, and the larger the next batch, up to the size that this machine was measured to run well.

Overload is refused at the door. Once more is queued than can be answered within `max_wait_s`, or than a frame's own
deadline allows, a frame is turned away with the time after which another try has a chance: what was taken in is
answered in bounded time, and no time goes into answers that come too late.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ..runtime.answer import Reply
from ..runtime.errors import DrainingError, OverloadedError, UsageError
from .cost import BatchCost
from .engine import Engine
from .fair_queue import FairQueue
from .job import Finished, Job
from .runner import BatchRunner, Ran, Ready, Shape


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How frames gather, and how many may wait."""

    max_batch: int = 32
    """Frames of one run, at most; measured costs may keep it lower."""
    queue: int = 1024
    """Frames that may wait for a worker, at most."""
    max_wait_s: float = 0.5
    """Expected time in the queue above which a frame is turned away."""
    runs: int = 0
    """Runs of one graph at the same time; 0 for as many as pay, measured when the graph is loaded."""
    learn_s: float = 1.0
    """Time for measuring batch sizes when a graph is loaded; 0 for learning from real frames alone."""

    @property
    def max_run_s(self) -> float:
        """Longest run that is worth gathering frames for: one that is under way and one that is decoded then take half
        of what a frame may wait."""
        return self.max_wait_s / 4

    def __post_init__(self) -> None:
        if min(self.max_batch, self.queue) < 1 or self.runs < 0:
            raise UsageError("batch size and queue length must be 1 or more, and runs 0 or more")
        if self.max_wait_s <= 0 or self.learn_s < 0:
            raise UsageError("waiting must be more than 0 s, and learning 0 s or more")


class Batcher:
    """The queue and the workers of one graph.

    Args:
        name: for the log and the threads' names.
        engine: the graph.
        shape: makes replies of the outputs of a run; runs on a worker.
        deliver: takes the replies of a whole batch; runs on a worker, once for each batch.
        options: sizes.
        cost: what is known of the graph's runs already.
        runs: runs at the same time, where `options` leave that open.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        shape: Shape,
        deliver: Callable[[Finished], None],
        options: BatchOptions,
        *,
        cost: BatchCost | None = None,
        runs: int = 1,
    ) -> None:
        self.name = name
        self._deliver = deliver
        self._options = options
        self._queue: FairQueue[Job] = FairQueue()
        self._cost = cost or BatchCost(options.max_batch, options.max_run_s)
        self.runs = options.runs or runs
        """Runs of the graph at the same time."""
        self._capacity = self._affordable()
        self._filled = threading.Condition()
        self._closed = False
        self._ready: list[Ready] = []
        self._ran: deque[Ran] = deque()
        self._decoding = self._running = 0
        self._idle = self._called = 0
        """Workers that wait, and those that were woken and have not looked yet."""
        self._runner = BatchRunner(engine, shape, self._observe)
        # One thread more than runs: it decodes the next batch meanwhile, and sees the last one off.
        self._threads = [
            threading.Thread(target=self._work, name=f"{name} {number}", daemon=True) for number in range(self.runs + 1)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> Job | None:
        """Queue a job. Never blocks for longer than another thread holds the lock.

        Returns:
            Another client's job that had to leave for this one, or None. Its sender is owed an outcome.

        Raises:
            OverloadedError: the queue is full and this client has its share of it, or the frame would be late.
            DrainingError: the batcher is closed.
        """
        with self._filled:
            if self._closed:
                raise DrainingError("the model is being unloaded; connect again")
            self._check_in_time(job)
            displaced = self._queue.push(job.client.name, job, self._capacity)
            if displaced is job:
                raise self.overloaded()
            self._call_for_decoding()
        return displaced

    def overloaded(self) -> OverloadedError:
        """What a frame gets for which there is no room."""
        retry_ms = round(self._wait_s(len(self._queue)) * 1e3) or 1
        return OverloadedError(
            f"{len(self._queue)} frames are queued, and no more can be answered in time; try again in {retry_ms} ms",
            retry_ms,
        )

    def cancel(self, job: Job) -> None:
        """Forget a job: out of the queue, or, where it runs already, its outcome goes nowhere."""
        with self._filled:
            job.cancelled = True
            self._queue.remove(job.client.name, job)

    def close(self) -> None:
        """Take no more jobs, run what is queued, end the workers."""
        with self._filled:
            self._closed = True
            self._call(self._idle)
        for thread in self._threads:
            thread.join()

    def __len__(self) -> int:
        """Jobs that wait for a worker."""
        return len(self._queue)

    @property
    def best_batch(self) -> int:
        """Frames of one run that are worth gathering, as measured so far."""
        return self._cost.best_batch

    def _check_in_time(self, job: Job) -> None:
        """Turn a frame away now rather than after a wait that makes it worthless."""
        if not job.frame.deadline_ms or not self._queue:
            return
        ahead = self._queue.ahead(job.client.name)
        if self._wait_s(ahead) + self._cost.seconds(1) > job.frame.deadline_ms / 1000:
            raise self.overloaded()

    def _wait_s(self, queued: int) -> float:
        """Until so many frames have been answered. What one run costs was seen with the others beside it."""
        return self._cost.wait(queued) / self.runs

    def _affordable(self) -> int:
        """Frames that may be queued, so that the last is answered within `max_wait_s`."""
        best = self._cost.best_batch
        run_s = self._cost.seconds(best)
        in_time = round(self._options.max_wait_s / run_s * best * self.runs) if run_s else self._options.queue
        return min(self._options.queue, max(best, in_time))

    def _observe(self, frames: int, seconds: float) -> None:
        with self._filled:
            self._cost.observe(frames, seconds)
            self._capacity = self._affordable()

    def _work(self) -> None:
        while (step := self._next()) is not None:
            step()

    def _next(self) -> Callable[[], None] | None:
        """Wait for something to do; None when all is done."""
        with self._filled:
            while (step := self._choose()) is None:
                if self._closed and not self._queue and not self._ready:
                    self._call(self._idle)
                    return None
                self._idle += 1
                self._filled.wait()
                self._called -= 1
            if self._can_run or self._ran:
                self._call()
            else:
                self._call_for_decoding()
            return step

    def _call(self, count: int = 1) -> None:
        """Wake workers, or as many as wait."""
        count = min(count, self._idle)
        self._idle -= count
        self._called += count
        self._filled.notify(count)

    def _call_for_decoding(self) -> None:
        """Wake a worker where each that decodes has a next frame already: waking costs as much as taking a frame in."""
        if self._can_decode and len(self._queue) > self._decoding + self._called:
            self._call()

    def _choose(self) -> Callable[[], None] | None:
        """The most urgent thing to do. The graph is never to wait: it goes before the answers of its last run."""
        if self._can_run:
            count = self._cost.next_batch()
            batch, self._ready = self._ready[:count], self._ready[count:]
            self._running += 1
            return partial(self._run, batch)
        if self._ran:
            return partial(self._answer, self._ran.popleft())
        if self._can_decode:
            self._decoding += 1
            return partial(self._decode, *self._queue.take(1))
        return None

    @property
    def _can_run(self) -> bool:
        """The graph is free, and a batch is full, or nothing is there that would make it larger."""
        if self._running >= self.runs or not self._ready:
            return False
        return not self._queue or len(self._ready) >= self._cost.next_batch()

    @property
    def _can_decode(self) -> bool:
        """No more is decoded than the next batch takes: what is queued can still be cancelled, or go to another."""
        return bool(self._queue) and len(self._ready) + self._decoding < self._cost.next_batch()

    def _run(self, batch: list[Ready]) -> None:
        ran: list[Ran] = []
        finished: Finished = []
        try:
            ran, finished = self._runner.run(batch)
        finally:
            with self._filled:
                self._running -= 1
                self._ran += ran
        if finished:
            self._deliver(finished)

    def _answer(self, ran: Ran) -> None:
        self._deliver(self._runner.answer(ran))

    def _decode(self, job: Job) -> None:
        result = self._runner.decode(job)
        with self._filled:
            self._decoding -= 1
            if isinstance(result, Ready):
                self._ready.append(result)
        if isinstance(result, Reply):
            self._deliver([(job, result)])
