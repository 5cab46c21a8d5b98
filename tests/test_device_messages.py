"""What somebody reads who has typed the wrong thing: in one line, at once, and saying what to do."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from bundles import make_bundle, pictures
from narrows.device import Device, DeviceOptions
from narrows.device.emulator import LinkEmulator
from narrows.device.pull import PullOptions, newest_digest, pull
from narrows.device.schedule import parse_link
from narrows.runtime.bundle import Bundle
from narrows.runtime.credentials import LinkSecurity
from narrows.runtime.errors import ServerUnavailableError
from narrows.runtime.link import LinkOptions
from narrows.runtime.manifest import Half
from narrows.server import ServeOptions, ServerThread, TlsOptions
from narrows.server.certs import CertOptions, make_certificates
from PIL import Image
from processes import narrows


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("messages") / "bundles" / "tiny")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    for name, host in (("own", "127.0.0.1"), ("other", "other.local")):
        make_certificates(CertOptions(folder / name, hosts=(host,)))
    return folder


def tls(pki: Path, *, mutual: bool = False) -> TlsOptions:
    own = pki / "own"
    return TlsOptions(own / "server.pem", own / "server-key.pem", own / "ca.pem" if mutual else None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run"], "Missing argument"),
        (["run", "b", "--server", "a:1"], "Missing option"),
        (["run", "b", "--server", "a:1", "--input", "x", "--policy", "luck"], "is not one of"),
        (["rum"], "No such command"),
        (["pull", "a:1", "m", "--bogus"], "No such option"),
        (["serve", "b", "--port", "many"], "--port"),
    ],
)
def test_a_mistyped_command_takes_one_line(words: list[str], said: str) -> None:
    done = subprocess.run(narrows(*words), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("narrows: usage: ")
    assert said in line
    assert "--help shows" in line


def test_help_is_still_help() -> None:
    assert "Commands:" in subprocess.run(narrows("--help"), capture_output=True, text=True, check=True).stdout
    assert "Commands:" in subprocess.run(narrows(), capture_output=True, text=True, check=False).stderr


def test_each_mistake_with_tls_is_told_by_name(bundle: Bundle, pki: Path) -> None:
    def trouble(address: str, security: LinkSecurity) -> str:
        with pytest.raises(ServerUnavailableError) as caught:
            newest_digest(address, "tiny", PullOptions(link=LinkOptions(security=security)))
        return str(caught.value)

    trusted = LinkSecurity(ca=pki / "own" / "ca.pem")
    with ServerThread(ServeOptions(bundle.root, port=0, tls=tls(pki))) as server:
        assert newest_digest(server.address, "tiny", PullOptions(link=LinkOptions(security=trusted))) == bundle.digest
        strange = trouble(server.address, LinkSecurity(ca=pki / "other" / "ca.pem"))
        assert "certificate is not trusted" in strange
        assert "--ca" in strange
        assert "does it want TLS" in trouble(server.address, LinkSecurity())
        by_name = server.address.replace("127.0.0.1", "localhost")
        assert "another name" in trouble(by_name, trusted)
    with ServerThread(ServeOptions(bundle.root, port=0, tls=tls(pki, mutual=True))) as server:
        assert "--cert" in trouble(server.address, trusted)
    with ServerThread(ServeOptions(bundle.root, port=0)) as server:
        assert "speaks no TLS" in trouble(server.address, trusted)


def test_a_pull_from_nobody_says_so_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    command = narrows("pull", "127.0.0.1:1", "tiny", "-o", tmp_path / "tiny")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == ServerUnavailableError.exit_code
    assert "connection refused; is a server running there?" in done.stderr
    assert time.monotonic() - began < 15  # and not the twenty seconds for which a silent server is waited for


def test_a_run_says_at_once_what_it_waits_for_and_ends_at_ctrl_c(bundle: Bundle) -> None:
    command = narrows("run", bundle.root, "--server", "127.0.0.1:1", "--input", "-", "--size", "16x16")
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) as run:
        assert run.stderr is not None
        assert "connection refused" in run.stderr.readline()  # although no frame has come yet
        run.send_signal(signal.SIGINT)
        said, rest = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "Traceback" not in said + rest


def test_an_emulated_link_is_not_seen_in_names(bundle: Bundle, tmp_path: Path, pki: Path) -> None:
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
    command = narrows("run", bundle.root, "--server", "127.0.0.1:1", "--input", tmp_path, "--link", "1gbit")
    done = subprocess.run([*command, "--timeout", "1"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "127.0.0.1:1" in done.stderr
    assert done.stderr.count("127.0.0.1:") == done.stderr.count("127.0.0.1:1:")
    # Certificates, too, are held against the server's own name.
    with (
        ServerThread(ServeOptions(bundle.root, port=0, tls=tls(pki))) as server,
        LinkEmulator(server.address, parse_link("1gbit")) as link,
    ):
        options = LinkOptions(security=LinkSecurity(ca=pki / "own" / "ca.pem"), via=link.address)
        with Device(bundle, server.address, DeviceOptions(link=options)) as device:
            assert device.infer(pictures(1)[0]).outcome == "ok"


def test_a_pulled_bundle_needs_no_cache(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NARROWS_CACHE", str(tmp_path / "cache"))
    with ServerThread(ServeOptions(bundle.root, port=0)) as server:
        pull(server.address, "tiny", tmp_path / "home" / "held")
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "home").rename(tmp_path / "moved")
    held = Bundle.open(tmp_path / "moved" / "held", Half.DEVICE)
    assert held.digest == bundle.digest
