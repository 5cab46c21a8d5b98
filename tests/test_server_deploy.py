"""What an operator's machinery sees: the service manager, streams that grow old, the files in `deploy/`."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from bundles import make_bundle, pictures
from narrows.runtime.session import SessionOptions
from narrows.server import BatchOptions, ServeOptions, ServerThread
from processes import narrows, server_process
from server_client import Frames, hello, stream

ROOT = Path(__file__).resolve().parent.parent


def test_the_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "tiny")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with server_process(bundle.root) as (process, _):
            assert manager.recv(100) == b"READY=1"
            process.terminate()
            assert manager.recv(100) == b"STOPPING=1"
            assert process.wait(20) == 0


def test_an_old_stream_is_told_to_connect_again(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "tiny")
    frames = Frames(bundle)
    options = ServeOptions(
        bundle.root, port=0, max_stream_s=0.3, session=SessionOptions(threads=1), batch=BatchOptions(learn_s=0)
    )
    with ServerThread(options) as server:
        for _ in range(2):  # the server itself goes on
            with stream(server.address, hello(bundle)) as client:
                client.receive()
                client.send(frames.make(1, pictures(1)[0]))
                assert client.reply().error is None
                assert client.receive().HasField("draining")
                client.send(frames.make(2, pictures(1)[0]))
                assert client.reply().error.code == "draining"
                client.close()
                with pytest.raises(StopIteration):
                    client.receive()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
def test_the_systemd_unit_is_one(tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "narrows.service").read_text()
    unit = tmp_path / "narrows.service"
    unit.write_text(text.replace("/opt/narrows/bin/narrows", "/bin/true"))
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "narrows.service" not in said.stderr, said.stderr


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    pytest.importorskip("prometheus_client")
    import asyncio

    from narrows.server.metrics import Metrics
    from narrows.server.plane import DataPlane, PlaneOptions

    async def known() -> set[str]:
        plane = DataPlane(PlaneOptions())
        registry = Metrics(plane.catalogue, plane.holdings).registry
        return {name for family in registry.collect() for name in (family.name, f"{family.name}_total")}

    names = asyncio.run(known())
    dashboard = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    asked = set(re.findall(r"\b(?:narrows|process)_\w+", json.dumps(dashboard["panels"])))
    assert asked
    for name in asked:
        assert {name, re.sub(r"_(bucket|sum|count)$", "", name)} & names, name


def test_every_option_in_deploy_is_one_of_ours() -> None:
    help_text = subprocess.run(
        narrows("serve", "--help"),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    ).stdout
    for file in ("narrows.service", "Containerfile", "kubernetes/narrows.yaml"):
        text = "\n".join(line for line in (ROOT / "deploy" / file).read_text().splitlines() if "apt-get" not in line)
        used = set(re.findall(r'(?<=[\s"])--(?:host|tls|tokens|drain|watch|metrics|insecure)[\w-]*', text))
        assert used
        assert all(option in help_text for option in used), (file, used)
