"""What Prometheus and people get to see."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import make_bundle, pictures
from narrows.runtime.bundle import Bundle
from narrows.runtime.errors import UsageError
from narrows.runtime.session import CPU, SessionOptions
from narrows.server import BatchOptions, ServeOptions, ServerThread
from server_client import Frames, hello, stream

parser = pytest.importorskip("prometheus_client.parser", reason="metrics need prometheus-client")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def server(bundle: Bundle) -> Iterator[ServerThread]:
    options = ServeOptions(
        bundle.root, port=0, metrics_port=0, session=SessionOptions(threads=1), batch=BatchOptions(learn_s=0)
    )
    with ServerThread(options) as thread:
        yield thread


def get(server: ServerThread, path: str) -> tuple[str, str]:
    with urllib.request.urlopen(f"http://{server.metrics_address}{path}", timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def samples(server: ServerThread) -> dict[tuple[str, frozenset[str]], float]:
    _, text = get(server, "/metrics")
    families = parser.text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.values())): s.value for family in families for s in family.samples}


def test_outcomes_are_counted_by_model_and_point(server: ServerThread, bundle: Bundle) -> None:
    frames = Frames(bundle)
    with stream(server.address, hello(bundle)) as client:
        client.receive()
        for i, picture in enumerate(pictures(6)):
            client.send(frames.make(i, picture, quality=i % 2))
        bad = frames.make(7, pictures(1)[0])
        client.send(replace(bad, checksum=bad.checksum ^ 1, quality=2))
        client.send(replace(bad, cut=99, id=8))
        client.replies(8)
        seen = samples(server)
        assert seen["narrows_streams", frozenset()] == 1
        status = json.loads(get(server, "/status.json")[1])
    cut = frozenset({"tiny", "features"})
    assert seen["narrows_outcomes_total", cut | {"0", "ok"}] == 3
    assert seen["narrows_outcomes_total", cut | {"1", "ok"}] == 3
    assert sum(v for (name, labels), v in seen.items() if name == "narrows_outcomes_total" and "" in labels) == 1
    assert seen["narrows_refusals_total", frozenset({"tiny", "quality"})] == 1
    for stage in ("queue", "decode", "tail"):
        assert seen["narrows_stage_seconds_count", cut | {stage}] == 6
    assert seen["narrows_payload_bytes_count", cut] == 7
    assert seen["narrows_in_flight_bytes", frozenset()] == 0
    assert seen["narrows_queued_frames", cut] == 0
    assert seen["narrows_graph_info", cut | {CPU}] == 1
    assert seen["process_resident_memory_bytes", frozenset()] > 0

    assert status["outcomes"]["ok"] == 6
    assert status["models"][0]["name"] == "tiny"
    assert status["models"][0]["cuts"][0]["provider"] == CPU
    assert {(point["quality"], point["frames"]) for point in status["points"]} >= {(0, 3), (1, 3)}
    assert set(status["latency_ms"]) == {"queue", "decode", "tail"}
    assert [(client["streams"], client["frames"]) for client in status["clients"]] == [(1, 7)]


def test_the_page_loads_nothing_from_elsewhere(server: ServerThread) -> None:
    kind, page = get(server, "/")
    assert kind.startswith("text/html")
    assert "http://" not in page
    assert "https://" not in page
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(server, "/etc/passwd")


def test_metrics_are_not_shown_to_others_unasked(tmp_path: Path) -> None:
    from narrows.server import TlsOptions

    tls = TlsOptions(tmp_path / "cert.pem", tmp_path / "key.pem")
    assert ServeOptions(tmp_path, host="0.0.0.0", tls=tls).tls is tls
    with pytest.raises(UsageError, match="not encrypted"):
        ServeOptions(tmp_path, host="0.0.0.0", tls=tls, metrics_port=9000)
