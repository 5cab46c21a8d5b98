"""`narrows deploy` against a real ssh server. What it installs is really installed and run; but few test machines
have a systemd, so the unit is held against `systemd-analyze`, and its command is run by hand."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import make_bundle, pictures
from narrows.device.deploy import ROOT, DeployOptions, deploy, look
from narrows.device.remote import Remote
from narrows.device.unit import service_unit
from narrows.runtime.bundle import Bundle
from narrows.runtime.errors import DeployError, UsageError
from narrows.server import ServeOptions, ServerThread
from PIL import Image
from processes import narrows
from sshd import MISSING, Ssh, available, ssh_server

pytestmark = pytest.mark.skipif(not available(), reason=MISSING)
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ssh]:
    with ssh_server(tmp_path_factory.mktemp("ssh")) as ssh:
        yield ssh


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("deploy") / "bundles" / "tiny")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    leave = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "*.so", "tests", "benchmarks")
    shutil.copytree(REPOSITORY, folder / "source", ignore=leave)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    # The codec's twin in Python serves here as well, and the kernel takes the compiler half a minute.
    environment = {**os.environ, "CC": "/bin/false"}
    command = [sys.executable, "-W", "ignore", "-c", code, folder]
    subprocess.run(command, cwd=folder / "source", check=True, stdout=-3, stderr=-3, env=environment)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def furnished(board: Ssh) -> Ssh:
    """A board that has the dependencies already, so that nothing is fetched."""
    root = board.home / ROOT
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "venv"], check=True)
    site = next((root / "venv" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return board


def options(board: Ssh, bundle: Bundle, **changes: object) -> DeployOptions:
    facts = {"server": "127.0.0.1:8470", "source": "photos", "bundle": bundle.root, "service": False}
    return DeployOptions(**{**facts, "ssh_options": board.options, **changes})


def test_from_nothing_to_running_and_again_for_nothing(
    furnished: Ssh, bundle: Bundle, wheel: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("secret\n")
    Image.fromarray(pictures(1)[0]).save(furnished.home / "a.png")
    said: list[str] = []
    with ServerThread(ServeOptions(bundle.root, port=0)) as server:
        wanted = options(
            furnished,
            bundle,
            server=server.address,
            source=str(furnished.home / "a.png"),
            wheel=wheel,
            secrets=(("--token-file", tmp_path / "token"),),
            arguments=("--quality", "1"),
        )
        deploy(furnished.host, wanted, said.append)
        assert any("installing" in line for line in said)
        assert not any(line.startswith("starting") for line in said)
        command = said[-1].removeprefix("start it there, in the home folder, with: ")
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HOME": str(furnished.home)}
        ran = subprocess.run(
            shlex.split(command), capture_output=True, text=True, env=environment, cwd=furnished.home, check=True
        )
        outcome = json.loads(ran.stdout)
        assert (outcome["outcome"], outcome["point"]["quality"]) == ("ok", 1)

        root = furnished.home / ROOT
        assert (root / "secrets/token").stat().st_mode & 0o077 == 0
        before = {path: path.stat().st_mtime_ns for path in root.rglob("*.py")}
        said.clear()
        deploy(furnished.host, wanted, said.append)
        assert any("installed already" in line for line in said)
        assert {path: path.stat().st_mtime_ns for path in root.rglob("*.py")} == before


def test_a_model_is_pulled_from_the_server(furnished: Ssh, bundle: Bundle, wheel: Path) -> None:
    with ServerThread(ServeOptions(bundle.root, port=0)) as server:
        wanted = replace(options(furnished, bundle, server=server.address, wheel=wheel), bundle=None, model="tiny")
        deploy(furnished.host, wanted, print)
        assert (furnished.home / ROOT / "bundles/tiny").is_symlink()
        with pytest.raises(DeployError, match=r"pulling the model.*no model 'other'"):
            deploy(furnished.host, replace(wanted, model="other"), print)


def test_a_dry_run_changes_nothing(board: Ssh, bundle: Bundle, tmp_path: Path, wheel: Path) -> None:
    before = sorted(board.home.rglob("*"))
    flags = [word for option in board.options for word in ("--ssh-option", option)]
    command = narrows("deploy", board.host, bundle.root, "--server", "127.0.0.1:1", "--dry-run", "--no-service")
    done = subprocess.run([*command, "--wheel", wheel, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert wheel.name in done.stdout
    assert "tiny" in done.stdout
    assert sorted(board.home.rglob("*")) == before


def test_a_board_without_systemd_is_told_of(board: Ssh, bundle: Bundle) -> None:
    if look(Remote(board.host, board.options), service=False).systemd:
        pytest.skip("this user has a systemd of his own")
    with pytest.raises(DeployError, match="--no-service"):
        deploy(board.host, options(board, bundle, service=True), print)


def test_what_goes_wrong_on_the_way_in_is_said(board: Ssh, tmp_path: Path) -> None:
    strange = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", strange], check=True)
    without = [o for o in board.options if not o.startswith(("IdentityFile", "UserKnownHostsFile"))]
    known = next(o for o in board.options if o.startswith("UserKnownHostsFile"))
    own = next(o for o in board.options if o.startswith("IdentityFile"))
    cases = {
        (*without, known, f"IdentityFile={strange}"): "ssh-copy-id",
        (*without, own, f"UserKnownHostsFile={tmp_path / 'none'}"): "connect once by hand",
        (*without[1:], own, known, "Port=1"): "no ssh server listens",
    }
    for ssh_options, advice in cases.items():
        with pytest.raises(DeployError, match=advice):
            Remote(board.host, ssh_options).ask("looking", "true")
    with pytest.raises(DeployError, match="looking: it does not work"):
        Remote(board.host, board.options).ask("looking", "echo 'it does not work' >&2; false")
    with pytest.raises(UsageError):
        Remote("-oProxyCommand=touch")


def test_the_wheel_has_to_fit_the_board(furnished: Ssh, bundle: Bundle, tmp_path: Path) -> None:
    other = tmp_path / "narrows-0.1.0-cp311-abi3-linux_riscv64.whl"
    other.write_bytes(b"")
    with pytest.raises(DeployError, match="is not for"):
        deploy(furnished.host, options(furnished, bundle, wheel=other), print)
    with pytest.raises(DeployError, match="installing"):
        broken = tmp_path / "narrows-0.1.0-py3-none-any.whl"
        broken.write_bytes(b"none")
        deploy(furnished.host, options(furnished, bundle, wheel=broken), print)
    assert not (furnished.home / ROOT / "installed").exists()


def test_a_checkout_becomes_a_source_archive_for_another_kind_of_machine(tmp_path: Path) -> None:
    from narrows.device.deploy import _build

    archive = _build(tmp_path, "aarch64" if sys.platform == "linux" and os.uname().machine != "aarch64" else "x86_64")
    assert archive.name.endswith(".tar.gz")
    names = subprocess.run(["tar", "tzf", archive], capture_output=True, text=True, check=True).stdout
    for needed in ("runtime/codec/_kernel.c", "protos/split_pb2.py", "device/deploy.py", "py.typed"):
        assert f"/{needed}\n" in names


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
def test_the_unit_is_one(tmp_path: Path) -> None:
    text = service_unit("tiny", ["/bin/true", "run", "%h/a b", '--input=50% of "$HOME"'], ROOT)
    assert '"%h/a b"' in text
    assert "50%% of" in text
    unit = tmp_path / "narrows-tiny.service"
    unit.write_text(text)
    verify = ["systemd-analyze", "--user", "verify", "--man=no", str(unit)]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(verify, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert "narrows-tiny.service" not in done.stderr, done.stderr


def test_the_manager_hears_that_a_run_is_alive(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(pictures(1)[0]).save(tmp_path / "photos/a.png")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
        # Nobody answers, so that the frame is under way for its whole two seconds.
        command = narrows("run", bundle.root, "--server", "127.0.0.1:1", "--input", tmp_path / "photos", "--timeout", 2)
        with subprocess.Popen(command, env=environment, stdout=-3, stderr=-3) as process:
            said = [manager.recv(100)]
            while said[-1] != b"STOPPING=1":
                said.append(manager.recv(100))
            process.wait(30)
    assert said[0] == b"READY=1"
    assert said.count(b"WATCHDOG=1") >= 2


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="either"):
        DeployOptions("a:1", "camera:0")
    with pytest.raises(UsageError, match="HOST:PORT"):
        DeployOptions("a", "camera:0", model="m")
    with pytest.raises(UsageError, match="no such file"):
        DeployOptions("a:1", "camera:0", model="m", wheel=Path("/nowhere.whl"))
