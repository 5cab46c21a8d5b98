"""What Prometheus is told. Names follow its conventions: base units, `_total`, no label without bound."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..runtime.answer import Reply
from ..runtime.errors import NarrowsError
from .catalogue import Catalogue
from .clients import Holdings
from .job import Job
from .tally import OK

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_BYTES = tuple(1 << power for power in range(7, 24))


class Metrics:
    """Histograms and counters of one server, and gauges that are read when somebody asks."""

    def __init__(self, catalogue: Catalogue, holdings: Holdings) -> None:
        self.registry = CollectorRegistry()
        self._stages = self._histogram("stage_seconds", "Duration of a frame's stages", ("stage",), _SECONDS)
        self._batch = self._histogram("batch_frames", "Frames that shared the tail's run", (), _BATCHES)
        self._payload = self._histogram("payload_bytes", "A frame's payloads", (), _BYTES)
        self._outcomes = Counter(
            "narrows_outcomes",
            "Frames by what they ended with",
            ("model", "cut", "quality", "outcome"),
            registry=self.registry,
        )
        self._refusals = Counter(
            "narrows_refusals", "Frames that were not taken in", ("model", "reason"), registry=self.registry
        )
        self.registry.register(_Gauges(catalogue, holdings))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._routes: dict[str, _Route] = {}

    def finished(self, job: Job, reply: Reply) -> None:
        """Count an outcome and its durations."""
        route = self._routes.get(job.route)
        if route is None:
            route = self._routes[job.route] = _Route(self, job.route)
        route.count(job, reply)

    def refused(self, model: str, error: NarrowsError) -> None:
        """Count a refusal."""
        self._refusals.labels(model, error.code).inc()

    def _histogram(self, name: str, text: str, labels: tuple[str, ...], buckets: Iterable[float]) -> Histogram:
        return Histogram(
            f"narrows_{name}", text, ("model", "cut", *labels), buckets=tuple(buckets), registry=self.registry
        )


class _Route:
    """The children of one (model, cut), looked up once: a look-up costs as much as the counting."""

    def __init__(self, metrics: Metrics, route: str) -> None:
        labels = self._labels = tuple(route.split("/", 1))
        self._queue = metrics._stages.labels(*labels, "queue")
        self._decode = metrics._stages.labels(*labels, "decode")
        self._tail = metrics._stages.labels(*labels, "tail")
        self._batch = metrics._batch.labels(*labels)
        self._payload = metrics._payload.labels(*labels)
        self._outcomes = metrics._outcomes
        self._known: dict[tuple[int, str], Counter] = {}

    def count(self, job: Job, reply: Reply) -> None:
        key = (job.frame.quality, reply.error.code if reply.error else OK)
        if reply.error is None:
            self._queue.observe(reply.timing.queue_ms / 1e3)
            self._decode.observe(reply.timing.decode_ms / 1e3)
            self._tail.observe(reply.timing.tail_ms / 1e3)
            self._batch.observe(reply.timing.batch)
        else:
            # What failed may have claimed any quality at all: no label of a stranger's choosing.
            key = (-1, key[1])
        self._payload.observe(job.size)
        counter = self._known.get(key)
        if counter is None:
            quality = "" if key[0] < 0 else str(key[0])
            counter = self._known[key] = self._outcomes.labels(*self._labels, quality, key[1])
        counter.inc()


class _Gauges(Collector):
    """State that is read on demand, so that it costs nothing in between."""

    def __init__(self, catalogue: Catalogue, holdings: Holdings) -> None:
        self._catalogue = catalogue
        self._holdings = holdings

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("narrows_streams", "Open streams", self._holdings.all_streams)
        yield GaugeMetricFamily("narrows_in_flight_bytes", "Payloads without outcome", self._holdings.all_bytes)
        queued = GaugeMetricFamily("narrows_queued_frames", "Frames that wait for a worker", labels=("model", "cut"))
        best = GaugeMetricFamily("narrows_best_batch_frames", "Batch size learned so far", labels=("model", "cut"))
        provider = GaugeMetricFamily(
            "narrows_graph_info", "The execution provider that runs a graph", labels=("model", "cut", "provider")
        )
        # Several versions of a model share their labels, and a series may be said once.
        lengths: dict[tuple[str, ...], int] = {}
        sizes: dict[tuple[str, ...], int] = {}
        providers: set[tuple[str, ...]] = set()
        for served in list(self._catalogue):
            providers |= {(served.model.name, graph.name, graph.provider) for graph in served.model.graphs}
            for batcher in served.batchers:
                labels = tuple(batcher.name.split("/", 1))
                lengths[labels] = lengths.get(labels, 0) + len(batcher)
                sizes[labels] = batcher.best_batch
        for family, values in ((queued, lengths), (best, sizes), (provider, dict.fromkeys(sorted(providers), 1))):
            for labels, value in values.items():
                family.add_metric(labels, value)
            yield family
