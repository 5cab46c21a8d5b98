"""The main job with real processes: serve, run, kill, restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from bundles import make_bundle, pictures
from narrows.runtime.bundle import Bundle
from PIL import Image
from processes import narrows, server_process

FRAMES = 500


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundles" / "tiny")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures."""
    target = tmp_path / "pictures"
    target.mkdir()
    for i, picture in enumerate(pictures(10)):
        Image.fromarray(picture).save(target / f"{i}.png")
    return target


def run(*arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(narrows("run", *arguments), capture_output=True, text=True, check=False, timeout=timeout)


def test_a_folder_of_pictures_gets_its_predictions(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    with server_process(bundle.root.parent) as (_, address):
        done = run(bundle.root, "--server", address, "--input", folder, "--json", "--save-outputs", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(line["source"]).name for line in said] == [f"{i}.png" for i in range(10)]
    for line in said:
        assert line["outcome"] == "ok"
        assert line["point"] == {"mode": "split", "cut": "features", "quality": 2}
        assert len(line["top"]) == 5
        assert line["top"][0]["label"] == f"class {line['top'][0]['index']}"
        assert 0 < line["payload_bytes"] < line["wire_bytes"]
        assert {"head", "encode", "tail", "total"} <= line["ms"].keys()
    assert len(list((tmp_path / "out").glob("*.npz"))) == 10


def test_an_unreadable_picture_is_told_and_the_rest_goes_on(bundle: Bundle, folder: Path) -> None:
    (folder / "4.png").write_text("no picture")
    with server_process(bundle.root.parent) as (_, address):
        done = run(bundle.root, "--server", address, "--input", folder, "--json")
    codes = [json.loads(line)["outcome"] for line in done.stdout.splitlines()]
    assert codes == ["ok"] * 4 + ["source"] + ["ok"] * 5
    assert done.returncode == 31
    assert "1 of 10 frames" in done.stderr


def test_halves_of_different_bundles_are_told_apart_by_name(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other" / "tiny", seed=9)
    with server_process(bundle.root.parent) as (_, address):
        done = run(other.root, "--server", address, "--input", folder)
    assert done.returncode == 21
    assert bundle.digest[:12] in done.stderr
    assert other.digest[:12] in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_is_not_served_is_told(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other" / "large", name="large")
    with server_process(bundle.root.parent) as (_, address):
        done = run(other.root, "--server", address, "--input", folder)
    assert done.returncode == 54
    assert "tiny" in done.stderr


def test_a_server_that_is_not_there_is_told(bundle: Bundle, folder: Path) -> None:
    done = run(bundle.root, "--server", "127.0.0.1:1", "--input", folder, "--timeout", "1", "--json")
    codes = [json.loads(line)["outcome"] for line in done.stdout.splitlines()]
    assert codes == ["unavailable"] * 10
    assert done.returncode == 51
    assert done.stderr.count("\n") == 2, "what is waited for, and what came of it; gRPC keeps its remarks to itself"


def test_sigterm_drains_and_exits_cleanly(bundle: Bundle) -> None:
    with server_process(bundle.root.parent) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_kill_9_in_mid_stream_loses_nothing(bundle: Bundle, tmp_path: Path) -> None:
    """The server is killed, and is back three seconds later: every one of 500 frames ends once."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i, picture in enumerate(pictures(FRAMES)):
        Image.fromarray(picture).save(folder / f"{i:03d}.png")
    with server_process(bundle.root.parent) as (first, address), (tmp_path / "outcomes").open("w") as out:
        device = subprocess.Popen(
            narrows("run", bundle.root, "--server", address, "--input", folder, "--json"),
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
        while (tmp_path / "outcomes").read_text().count("\n") < 20:
            assert device.poll() is None
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        time.sleep(3)
        with server_process(bundle.root.parent, port=int(address.rpartition(":")[2])):
            _, errors = device.communicate(timeout=90)
    said = [json.loads(line) for line in (tmp_path / "outcomes").read_text().splitlines()]
    assert [line["outcome"] for line in said] == ["ok"] * FRAMES, errors
    assert [Path(line["source"]).stem for line in said] == [f"{i:03d}" for i in range(FRAMES)]
    assert sorted(line["id"] for line in said) == sorted({line["id"] for line in said})
    assert max(line["ms"]["total"] for line in said) > 2000  # some frame really waited for the restart
    assert device.returncode == 0
