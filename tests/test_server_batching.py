"""The queue and the batcher: nothing lost, nothing swapped, nobody starved."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from narrows.runtime.answer import Reply, Wanted
from narrows.runtime.errors import ChecksumError, DeadlineError, DrainingError, OverloadedError, ShapeError
from narrows.runtime.frame import CodedTensor, Frame
from narrows.server.batcher import Batcher, BatchOptions
from narrows.server.clients import Client
from narrows.server.cost import BatchCost
from narrows.server.engine import Prepared
from narrows.server.fair_queue import FairQueue
from narrows.server.job import Job


class Doubler:
    """An engine whose answer to a frame is twice its payload's byte; `gate` holds its runs up."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Semaphore(0)
        self.prepared = threading.Semaphore(0)
        self.batches: list[list[int]] = []

    def prepare(self, frame: Frame) -> Prepared:
        self.prepared.release()
        payload = np.frombuffer(frame.tensors[0].payload, np.uint8)
        if payload[0] == 255:
            raise ChecksumError("damaged on purpose")
        return Prepared((payload,), 0)

    def run(self, batch):
        self.running.release()
        self.gate.wait()
        values = np.stack([one.arrays[0] for one in batch])[:, 0].astype(int)
        self.batches.append(values.tolist())
        if 13 in values:
            raise ShapeError("a graph that does not like 13")
        if 17 in values:
            raise ZeroDivisionError("a graph that breaks at 17")
        return [{"twice": np.array(2 * value)} for value in values]


class SettledCost(BatchCost):
    """Runs in these tests are too short to learn from."""

    def observe(self, frames: int, seconds: float) -> None:
        pass


class Bench:
    """A batcher, and what it delivered."""

    def __init__(self, **options) -> None:
        self.engine = Doubler()
        self.replies: dict[int, Reply] = {}
        self._arrived = threading.Condition()
        self.held = 1 + options.get("max_batch", 32)
        """Frames that `hold` uses: one runs, a full batch is decoded and waits for its run."""
        self.batcher = Batcher(
            "bench",
            self.engine,
            _shape,
            self._deliver,
            BatchOptions(**options),
            cost=SettledCost(options.get("max_batch", 32)),
        )

    def job(self, frame_id: int, value: int = 1, client: str = "a", deadline_ms: int = 0, length: int = 1) -> Job:
        tensors = (CodedTensor(bytes([value] * length)),)
        return Job(
            Frame(frame_id, 0, 0, 0, 0, tensors, deadline_ms),
            Wanted(),
            Client(client),
            lambda _: None,
            length,
            self.batcher,
        )

    def wait(self, count: int) -> None:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.replies) >= count, 30)

    def hold(self) -> None:
        """Keep both workers busy: what is submitted from now on is queued."""
        self.engine.gate.clear()
        for i in range(self.held):
            self.batcher.submit(self.job(1_000_000 + i))
            assert self.engine.prepared.acquire(timeout=30)
            if not i:
                assert self.engine.running.acquire(timeout=30)

    def _deliver(self, finished) -> None:
        with self._arrived:
            for job, reply in finished:
                assert job.frame.id not in self.replies
                if not job.cancelled:
                    self.replies[job.frame.id] = reply
            self._arrived.notify()


def _shape(jobs, outputs, timings) -> list[Reply]:
    return [Reply(job.frame.id, own, timing=timing) for job, own, timing in zip(jobs, outputs, timings, strict=True)]


@pytest.fixture
def bench():
    benches = []

    def make(**options) -> Bench:
        benches.append(Bench(**options))
        return benches[-1]

    yield make
    for one in benches:
        one.engine.gate.set()
        one.batcher.close()


def test_what_is_queued_becomes_one_batch(bench) -> None:
    one = bench(max_batch=8)
    one.hold()
    for i in range(10):
        one.batcher.submit(one.job(i, value=i))
    one.engine.gate.set()
    one.wait(10 + one.held)
    assert sorted(len(batch) for batch in one.engine.batches) == [1, 2, 8, 8]
    assert all(one.replies[i].outputs["twice"] == 2 * i for i in range(10))
    assert one.replies[3].timing.batch == 8


@pytest.mark.parametrize(("value", "error"), [(255, "checksum"), (13, "shape"), (17, "internal")])
def test_one_bad_frame_fails_alone(bench, value: int, error: str, caplog) -> None:
    one = bench()
    one.hold()
    for i in range(5):
        one.batcher.submit(one.job(i, value=value if i == 2 else i))
    one.engine.gate.set()
    one.wait(5 + one.held)
    assert one.replies[2].error.code == error
    assert "on purpose" not in str(one.replies[2].error) or error == "checksum"
    assert all(one.replies[i].outputs["twice"] == 2 * i for i in (0, 1, 3, 4))
    if error == "internal":
        assert "ZeroDivisionError" in caplog.text
        assert "ZeroDivisionError" not in str(one.replies[2].error)


def test_frames_of_several_shapes_share_a_take_and_not_a_run(bench) -> None:
    one = bench()
    one.hold()
    for i in range(6):
        one.batcher.submit(one.job(i, value=i, length=1 + i % 2))
    one.engine.gate.set()
    one.wait(6 + one.held)
    assert [0, 2, 4] in one.engine.batches
    assert [1, 3, 5] in one.engine.batches
    assert all(one.replies[i].outputs["twice"] == 2 * i for i in range(6))


def test_a_frame_whose_deadline_has_passed_is_not_computed(bench) -> None:
    one = bench()
    one.hold()
    late, good = one.job(1, value=7, deadline_ms=1), one.job(2, value=8, deadline_ms=60_000)
    late.taken_s -= 1
    one.batcher.submit(late)
    one.batcher.submit(good)
    one.engine.gate.set()
    one.wait(2 + one.held)
    assert isinstance(one.replies[1].error, DeadlineError)
    assert one.replies[2].error is None
    assert [7] not in one.engine.batches
    assert [8] in one.engine.batches


def test_cancelled_frames_leave_the_queue(bench) -> None:
    one = bench()
    one.hold()
    jobs = [one.job(i) for i in range(4)]
    for job in jobs:
        one.batcher.submit(job)
    one.batcher.cancel(jobs[1])
    assert len(one.batcher) == 3
    one.engine.gate.set()
    one.wait(3 + one.held)
    assert 1 not in one.replies


def test_a_full_queue_refuses_and_a_flood_displaces_itself(bench) -> None:
    one = bench(queue=4)
    one.hold()
    flood = [one.job(i, client="flood") for i in range(5)]
    for job in flood[:4]:
        assert one.batcher.submit(job) is None
    with pytest.raises(OverloadedError):
        one.batcher.submit(flood[4])
    assert one.batcher.submit(one.job(10, client="modest")) is flood[3]
    assert one.batcher.submit(one.job(11, client="modest")) is flood[2]
    with pytest.raises(OverloadedError):
        one.batcher.submit(one.job(12, client="modest"))


def test_a_closed_batcher_finishes_and_takes_no_more(bench) -> None:
    one = bench()
    one.hold()
    one.batcher.submit(one.job(1))
    one.engine.gate.set()
    one.batcher.close()
    assert set(one.replies) == {1, *range(1_000_000, 1_000_000 + one.held)}
    with pytest.raises(DrainingError):
        one.batcher.submit(one.job(2))


@given(
    capacity=st.integers(1, 12),
    steps=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["push", "take", "remove"])), max_size=80),
)
def test_the_fair_queue_loses_and_invents_nothing(capacity: int, steps) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    inside: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for number, (client, step) in enumerate(steps):
        if step == "push":
            item = (client, number)
            out = queue.push(client, item, capacity)
            if out is not item:
                inside[client].append(item)
            if out is not None and out is not item:
                assert out == inside[out[0]].pop(), "the newest of its lane leaves"
                assert len(inside[out[0]]) >= len(inside[client]), "of a lane that was longer"
        elif step == "take":
            for taken in queue.take(1):
                assert taken == inside[taken[0]].pop(0), "a lane keeps its order"
        elif inside[client]:
            item = inside[client].pop(number % len(inside[client]))
            assert queue.remove(client, item)
            assert not queue.remove(client, item)
        assert len(queue) == sum(map(len, inside.values())) <= capacity
        assert queue.lanes == sum(map(bool, inside.values()))


@given(lanes=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 20), min_size=1), count=st.integers(1, 30))
def test_a_batch_takes_from_all_lanes_alike(lanes: dict[str, int], count: int) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for client, length in lanes.items():
        for i in range(length):
            queue.push(client, (client, i), 1000)
    share = Counter(client for client, _ in queue.take(count))
    most = max(share.values())
    assert all(share[client] >= min(length, most - 1) for client, length in lanes.items())


def test_batch_sizes_follow_measured_costs() -> None:
    cost = BatchCost(max_batch=32)
    assert cost.best_batch == 32, "nothing is known"
    for frames, seconds in ((1, 0.010), (2, 0.012), (4, 0.016), (8, 0.034), (16, 0.080)):
        cost.observe(frames, seconds)
    assert cost.best_batch == 4, "larger is slower, smaller too"
    assert cost.seconds(4) == pytest.approx(0.016)
    assert cost.wait(9) == pytest.approx(2 * 0.016 + 0.010)
    for _ in range(200):
        cost.observe(1, 0.003)
    assert cost.best_batch == 1, "what is measured later counts"


def test_a_graph_that_gains_nothing_from_batches_runs_frames_alone() -> None:
    cost = BatchCost(max_batch=32)
    sizes = []
    cost.learn(lambda frames: (sizes.append(frames), threading.Event().wait(0.002 * frames)), budget_s=10)
    assert cost.best_batch <= 2
    assert max(sizes) <= 8, "and larger ones are not even tried"


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(1e-5, 10)), min_size=1))
def test_what_is_learned_stays_within_its_bounds(runs: list[tuple[int, float]]) -> None:
    cost = BatchCost(max_batch=24)
    for frames, seconds in runs:
        cost.observe(frames, seconds)
        assert 1 <= cost.best_batch <= cost.next_batch() <= 24
    assert cost.wait(0) == 0 < cost.wait(1)


def test_frames_that_would_be_late_and_queues_that_are_too_long_are_refused_at_once(bench) -> None:
    one = bench(max_batch=1, max_wait_s=1.0)
    BatchCost.observe(one.batcher._cost, 1, 0.1)
    one.batcher._capacity = one.batcher._affordable()
    one.hold()
    for i in range(3):
        one.batcher.submit(one.job(i, client="first"))
    with pytest.raises(OverloadedError) as caught:
        one.batcher.submit(one.job(10, client="first", deadline_ms=350))
    assert caught.value.retry_ms == 300
    one.batcher.submit(one.job(11, client="other", deadline_ms=350))  # its turn comes sooner
    for i in range(20, 26):
        one.batcher.submit(one.job(i, client="first"))
    with pytest.raises(OverloadedError):
        one.batcher.submit(one.job(30, client="first"))
    assert len(one.batcher) == 10, "a second's worth"


def test_what_comes_during_a_run_is_decoded_then_and_runs_together(bench) -> None:
    one = bench(max_batch=8)
    one.engine.gate.clear()
    for i in range(5):
        one.batcher.submit(one.job(i, value=i))
        assert one.engine.prepared.acquire(timeout=30)  # decoded at once, whatever runs
        if not i:
            assert one.engine.running.acquire(timeout=30)
    one.engine.gate.set()
    one.wait(5)
    assert one.engine.batches == [[0], [1, 2, 3, 4]]
