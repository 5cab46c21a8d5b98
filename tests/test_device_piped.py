"""Pictures in a pipe, network cameras, the annotated video, the live view, and versions that come meanwhile."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from bundles import make_bundle, pictures
from hypothesis import given
from hypothesis import strategies as st
from narrows.device import Device, Outcome, Point
from narrows.device.annotate import AnnotatedVideo, captions
from narrows.device.piped import coded_pictures, raw_pictures
from narrows.device.sources import SourceOptions, open_source
from narrows.runtime.bundle import Bundle
from narrows.runtime.errors import MissingDependencyError, SourceError, UsageError
from narrows.server import ServeOptions, ServerThread
from PIL import Image
from processes import narrows, server_process


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("piped") / "bundles" / "tiny")


def coded(picture: np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


class Drip(io.RawIOBase):
    """A pipe that gives a few bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._file, self._step = io.BytesIO(data), step

    def read(self, size: int = -1) -> bytes:
        return self._file.read(self._step if size < 0 else min(size, self._step))


@given(
    st.lists(st.sampled_from(["JPEG", "PNG", "progressive", "preview"]), max_size=6), st.sampled_from([1, 7, 10_000])
)
def test_files_in_a_pipe_come_out_one_by_one(kinds: list[str], step: int) -> None:
    shown, data = pictures(len(kinds)), b""
    for kind, picture in zip(kinds, shown, strict=True):
        if kind == "preview":  # a whole JPEG within the header of another
            exif = Image.Exif()
            exif[0x927C] = coded(picture, "JPEG")
            data += coded(picture, "JPEG", exif=exif)
        elif kind == "progressive":
            data += coded(picture, "JPEG", progressive=True, restart_marker_rows=1)
        else:
            data += coded(picture, kind)
    out = list(coded_pictures(Drip(data, step)))
    assert len(out) == len(kinds)
    for kind, picture, got in zip(kinds, shown, out, strict=True):
        assert isinstance(got, np.ndarray)
        if kind == "PNG":
            np.testing.assert_array_equal(got, picture)
        else:
            assert got.shape == picture.shape


def test_rubbish_in_a_pipe_costs_no_more_than_itself() -> None:
    good = pictures(1)[0]
    png = coded(good, "PNG")
    out = list(coded_pictures(io.BytesIO(b"rubbish" + png + b"\xff\xd8\xff more" * 5 + png + png[:-9])))
    assert sum(isinstance(one, np.ndarray) for one in out) == 2
    assert all(isinstance(one, (np.ndarray, SourceError)) for one in out)
    assert list(coded_pictures(io.BytesIO(b""))) == []


@given(st.binary(max_size=400))
def test_no_bytes_in_a_pipe_do_harm(data: bytes) -> None:
    for start in (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"):
        assert all(isinstance(one, (np.ndarray, SourceError)) for one in coded_pictures(io.BytesIO(start + data)))


def test_raw_pixels_in_a_pipe() -> None:
    shown = pictures(3)
    data = b"".join(picture.tobytes() for picture in shown)
    np.testing.assert_array_equal(list(raw_pictures(Drip(data, 100), 16, 16)), shown)
    with pytest.raises(SourceError, match="ended after"):
        list(raw_pictures(io.BytesIO(data[:-1]), 16, 16))


def test_a_run_reads_a_pipe(bundle: Bundle) -> None:
    shown = pictures(4)
    files = b"".join(coded(picture, "PNG") for picture in shown)
    raw = b"".join(picture.tobytes() for picture in shown)
    with ServerThread(ServeOptions(bundle.root, port=0)) as server:
        answers = []
        for data, more in ((files, ()), (raw, ("--size", "16x16"))):
            command = narrows("run", bundle.root, "--server", server.address, "--input", "-", "--json", *more)
            done = subprocess.run(command, input=data, capture_output=True, check=True)
            answers.append([json.loads(line)["top"] for line in done.stdout.splitlines()])
        assert answers[0] == answers[1]
        assert len(answers[0]) == 4
        for size in ("16", "0x5", "axb"):
            command = narrows("run", bundle.root, "--server", server.address, "--input", "-", "--size", size)
            assert subprocess.run(command, input=b"", capture_output=True, check=False).returncode == 2


def test_a_size_goes_with_a_pipe(bundle: Bundle, tmp_path: Path) -> None:
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="a pipe"):
        open_source(tmp_path / "a.png", bundle.manifest, SourceOptions(size=(4, 4)))


@contextmanager
def mjpeg_server(count: int) -> Iterator[str]:
    """What many network cameras speak: JPEG files as parts of one endless HTTP answer."""
    film = [coded(np.full((24, 32, 3), 80 * n, np.uint8), "JPEG") for n in range(count)]

    class Camera(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            for picture in film:
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n")
                self.wfile.write(f"Content-Length: {len(picture)}\r\n\r\n".encode() + picture + b"\r\n")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/video.mjpg"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_network_camera_is_read_and_kept(bundle: Bundle) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed (the extra `video`)")
    with mjpeg_server(3) as url:
        items = list(open_source(url, bundle.manifest, SourceOptions(keep_pictures=True)))
    assert len(items) >= 2  # FFmpeg may swallow the last of a stream that breaks off
    assert all(item.picture is not None and item.picture.shape == (24, 32, 3) for item in items)
    assert items[1].arrays[0].shape == (16, 16, 3)


def test_a_video_with_the_answers(bundle: Bundle, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed (the extra `video`)")
    for n, picture in enumerate(pictures(5)):
        Image.fromarray(picture).resize((321, 240)).save(tmp_path / f"{n}.png")
    with ServerThread(ServeOptions(bundle.root, port=0)) as server:
        command = narrows("run", bundle.root, "--server", server.address, "--input", tmp_path)
        done = subprocess.run(
            [*command, "--annotate", tmp_path / "out.mp4"], capture_output=True, text=True, check=True
        )
    assert "5 frames answered" in done.stderr
    film, seen = cv2.VideoCapture(str(tmp_path / "out.mp4")), 0
    while film.read()[0]:
        seen += 1
    assert (seen, int(film.get(cv2.CAP_PROP_FRAME_WIDTH))) == (5, 322)
    film.release()
    with pytest.raises(UsageError):
        AnnotatedVideo(tmp_path / "out.txt")


def test_captions_say_what_came_of_a_frame() -> None:
    failed = Outcome(0, "x", Point("split", "c", 0), error=SourceError("é"))
    assert captions(failed)[0] == "source"
    assert all(line.isascii() for line in captions(failed))


def test_without_opencv_a_video_says_what_to_install(tmp_path: Path) -> None:
    try:
        import cv2  # noqa: F401
    except ImportError:
        with pytest.raises(MissingDependencyError, match="video"):
            AnnotatedVideo(tmp_path / "out.mp4")
    else:
        pytest.skip("OpenCV is installed")


def test_the_live_view_shows_what_the_device_does(bundle: Bundle) -> None:
    from narrows.cli.live import LiveView
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with (
        ServerThread(ServeOptions(bundle.root, port=0)) as server,
        Device(bundle, server.address) as device,
        LiveView(console) as view,
    ):
        view.watch(device)
        for outcome in device.stream(pictures(6)):
            view.add(outcome)
    said = console.file.getvalue()
    for word in ("6 server", "split at features", "Mbit/s", "class "):
        assert word in said


def test_a_run_swaps_a_new_version_in(bundle: Bundle, tmp_path: Path) -> None:
    """The server gets another version while a run goes on: every frame is answered, the later ones by the new one."""
    bundles = tmp_path / "bundles"
    shutil.copytree(bundle.root, bundles / "tiny")
    newer = make_bundle(tmp_path / "newer" / "tiny", seed=3)
    with server_process(bundles, "--watch", 0.2) as (_, address):
        subprocess.run(narrows("pull", address, "tiny", "-o", tmp_path / "held"), check=True, capture_output=True)
        command = narrows("run", tmp_path / "held", "--server", address, "--input", "-", "--json", "--update")
        command += ["--size", "16x16", "--update-every", "1"]
        with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1) as run:
            assert run.stdin is not None
            assert run.stdout is not None
            picture, said = pictures(1)[0].tobytes(), []

            def ask() -> str:
                run.stdin.write(picture)
                run.stdin.flush()
                said.append(json.loads(run.stdout.readline()))
                return json.dumps(said[-1]["top"])

            before = ask()
            shutil.rmtree(bundles / "tiny")
            shutil.copytree(newer.root, bundles / "tiny")
            until = time.monotonic() + 30
            while (after := ask()) == before and time.monotonic() < until:
                time.sleep(0.1)
            assert after != before
            run.stdin.close()
            assert run.wait(30) == 0
    assert {one["outcome"] for one in said} == {"ok"}
