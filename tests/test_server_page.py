"""The status page in a real browser."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from bundles import make_bundle, pictures
from narrows.runtime.session import SessionOptions
from narrows.server import BatchOptions, ServeOptions, ServerThread
from server_client import Frames, hello, stream

pytest.importorskip("prometheus_client", reason="the page needs prometheus-client")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_the_page_shows_what_the_server_does(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "tiny", "<b>tiny</b>")
    options = ServeOptions(
        bundle.root, port=0, metrics_port=0, session=SessionOptions(threads=1), batch=BatchOptions(learn_s=0)
    )
    with ServerThread(options) as server, stream(server.address, hello(bundle)) as client:
        client.receive()
        frames = Frames(bundle)
        for i, picture in enumerate(pictures(8)):
            client.send(frames.make(i, picture, quality=i % 2))
        client.replies(8)
        browser = [
            str(BROWSER),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
        ]
        page = subprocess.run(
            [*browser, "--virtual-time-budget=1500", "--dump-dom", f"http://{server.metrics_address}/"],
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        ).stdout
    assert "up for" in page
    assert "&lt;b&gt;tiny&lt;/b&gt;" in page, "a model's name is text"
    assert "<b>tiny</b>" not in page
    assert page.count('class="bar"') == 2, "two operating points are in use"
    assert "100.00 %" in page
