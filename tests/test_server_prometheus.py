"""A real Prometheus scrapes the server and answers a query."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from bundles import make_bundle, pictures
from narrows.runtime.session import SessionOptions
from narrows.server import BatchOptions, ServeOptions, ServerThread
from server_client import Frames, hello, stream

pytest.importorskip("prometheus_client", reason="metrics need prometheus-client")

PROMETHEUS = shutil.which("prometheus")


def query(address: str, expression: str) -> list[dict]:
    url = f"http://{address}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)["data"]["result"]


@pytest.mark.skipif(PROMETHEUS is None, reason="there is no Prometheus here (Debian's package has it)")
def test_prometheus_scrapes_and_answers(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "tiny")
    options = ServeOptions(
        bundle.root, port=0, metrics_port=0, session=SessionOptions(threads=1), batch=BatchOptions(learn_s=0)
    )
    with ServerThread(options) as server, stream(server.address, hello(bundle)) as client:
        client.receive()
        frames = Frames(bundle)
        for i, picture in enumerate(pictures(5)):
            client.send(frames.make(i, picture))
        client.replies(5)
        config = {
            "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
            "scrape_configs": [{"job_name": "narrows", "static_configs": [{"targets": [server.metrics_address]}]}],
        }
        (tmp_path / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        command = [str(PROMETHEUS), f"--config.file={tmp_path / 'prometheus.yml'}", f"--web.listen-address={address}"]
        with subprocess.Popen(
            [*command, f"--storage.tsdb.path={tmp_path / 'data'}"], stderr=subprocess.DEVNULL
        ) as process:
            try:
                found: list[dict] = []
                deadline = time.monotonic() + 60
                while not found and time.monotonic() < deadline:
                    time.sleep(0.2)
                    try:
                        found = query(address, 'sum by (model) (narrows_outcomes_total{outcome="ok"})')
                    except (urllib.error.URLError, ConnectionError):
                        continue
                assert [(row["metric"], row["value"][1]) for row in found] == [({"model": "tiny"}, "5")]
                p99 = query(address, "histogram_quantile(0.99, sum by (le) (narrows_stage_seconds_bucket))")
                assert 0 < float(p99[0]["value"][1]) < 60
            finally:
                process.kill()
