"""A bundle's device half at work on a board, over ssh: checked, installed, started, and the same again the next time.

    deploy("pi@raspberrypi", DeployOptions("server:8470", "camera:0", model="resnet56"))

Every step looks first whether there is anything to do. Everything lies in one folder of the user's (`ROOT`), nothing
needs root. `ssh` and `scp` are the system's own, never asking: keys, jump hosts and names are those of the user's
configuration.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runtime.bundle import Bundle, sha256_of
from ..runtime.errors import DeployError, UsageError
from ..runtime.link import check_target
from ..runtime.manifest import Half
from .remote import Remote
from .unit import service_unit

ROOT = ".local/share/narrows"
"""Under the home of the user there."""
_MACHINES = ("aarch64", "x86_64")
_PYTHONS = ("python3.13", "python3.12", "python3.11", "python3")
_SOURCE = Path(__file__).resolve().parent.parent
_MEGABYTES = 600
"""What environment, wheel cache and a bundle take, generously."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DeployOptions:
    """What is to run there."""

    server: str
    """The server's "host:port", as the board reaches it; several, joined by commas."""
    source: str
    """What `narrows run --input` takes, on the board."""
    bundle: Path | None = None
    """A bundle of this machine, whose device half is copied; or
    """
    model: str | None = None
    """a model of the server's, which the board pulls."""
    arguments: tuple[str, ...] = ()
    """More options of `narrows run`."""
    wheel: Path | None = None
    """The wheel (or source archive) to install; made of this checkout where none is given."""
    find_links: Path | None = None
    """A folder with wheels of everything else, for a board without an index; nothing else is asked then."""
    secrets: tuple[tuple[str, Path], ...] = ()
    """Options of `narrows run` that name a file of this machine (`--ca`, `--token-file`, …); the files are copied."""
    service: bool = True
    """Install and start a systemd user service."""
    dry_run: bool = False
    """Look, and say what would be done."""
    ssh_options: tuple[str, ...] = ()
    """As `ssh -o` takes them."""

    def __post_init__(self) -> None:
        for target in self.server.split(","):
            check_target(target)
        if (self.bundle is None) == (self.model is None):
            raise UsageError("deploy takes either a bundle of this machine or the name of a model on the server")
        for path in (self.wheel, self.find_links, *(file for _, file in self.secrets)):
            if path is not None and not path.exists():
                raise UsageError(f"{path}: no such file or folder")


@dataclass(frozen=True, slots=True)
class Board:
    """What a look at the other machine found."""

    machine: str
    python: str
    version: str
    systemd: bool
    installed: str
    """sha256 of what was installed last; empty where nothing was."""


def deploy(host: str, options: DeployOptions, tell: Tell) -> None:
    """Bring a board to where it runs the model, from wherever it is.

    Args:
        host: as ssh takes it: "pi@raspberrypi", or a name of the user's configuration.
        options: what is to run.
        tell: takes a line for every step.

    Raises:
        DeployError: the step that failed, in the board's words, and what to do.
        UsageError: a bundle and a name at once, or a file that is not there.
        BundleError: the bundle here is damaged.
    """
    remote = Remote(host, options.ssh_options)
    bundle = None if options.bundle is None else Bundle.open(options.bundle, Half.DEVICE)
    name = bundle.manifest.name if bundle is not None else str(options.model)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be the name of a service; letters, digits, dots and dashes are taken")
    board = look(remote, service=options.service)
    tell(f"{host}: {board.machine}, Python {board.version}, {'systemd' if board.systemd else 'no systemd'}")
    with tempfile.TemporaryDirectory() as folder:
        package = options.wheel or _build(Path(folder), board.machine)
        _check_wheel(package, board)
        steps = _Steps(remote, options, board, tell)
        steps.install(package)
        steps.place_secrets()
        steps.place_bundle(name, bundle, Path(folder))
        steps.try_bundle(name)
        if options.service:
            steps.start(name)
        else:
            tell(f"start it there, in the home folder, with: {shlex.join(steps.command(name, ''))}")


def look(remote: Remote, *, service: bool) -> Board:
    """See what is there, and change nothing.

    Raises:
        DeployError: no such machine, no way in, no Python from 3.11 on, no `venv`, no room, no systemd.
    """
    said = remote.ask(
        "looking around",
        f"""
        python=""; version=""; venv=""; systemd=""
        for one in {" ".join(_PYTHONS)}; do
            if command -v "$one" >/dev/null && "$one" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
                python="$one"; version="$("$one" -c 'import platform; print(platform.python_version())')"
                if "$one" -c 'import venv, ensurepip' 2>/dev/null; then venv=yes; fi
                break
            fi
        done
        if systemctl --user show-environment >/dev/null 2>&1; then systemd=yes; fi
        echo "system $(uname -sm)"; echo "python $python"; echo "version $version"; echo "venv $venv"
        echo "systemd $systemd"; echo "free_mb $(df -Pm . | awk 'NR == 2 {{ print $4 }}')"
        echo "installed $(cat {ROOT}/installed 2>/dev/null || true)"
        """,
    )
    found = dict(line.partition(" ")[::2] for line in said.splitlines())
    host, python, installed = remote.host, found.get("python", ""), found.get("installed", "").strip()
    kernel, _, machine = found.get("system", "").partition(" ")
    free_mb = found.get("free_mb", "")
    if kernel != "Linux" or machine not in _MACHINES:
        raise DeployError(
            f"{host} is {kernel or 'unknown'} on {machine}; 64-bit Linux is needed, {' or '.join(_MACHINES)}"
        )
    if not python:
        raise DeployError(f"{host} has no Python from 3.11 on; install python3.11 or later there")
    if not found.get("venv"):
        raise DeployError(f"{host}: {python} cannot make environments; there: sudo apt install python3-venv")
    if free_mb.isdigit() and int(free_mb) < _MEGABYTES and not installed:
        raise DeployError(f"{host} has {free_mb} MB left in the home folder; {_MEGABYTES} are needed")
    if service and not found.get("systemd"):
        raise DeployError(f"{host} has no systemd that this user may use; give --no-service and start it yourself")
    return Board(machine, python, found["version"], bool(found.get("systemd")), installed)


@dataclass(frozen=True, slots=True)
class _Steps:
    remote: Remote
    options: DeployOptions
    board: Board
    tell: Tell

    def install(self, package: Path) -> None:
        """An environment with narrows in it; nothing where the very same is installed."""
        digest = sha256_of(package)
        if self.board.installed == digest:
            self.tell(f"{package.name} is installed already")
            return
        self.tell(f"installing {package.name}")
        if self.options.dry_run:
            return
        self._run("making a folder", f"mkdir -p {ROOT}/wheels {ROOT}/bundles; rm -rf {ROOT}/installed")
        self.remote.copy("copying the wheel", [package], f"{ROOT}/wheels/")
        index = ""
        if self.options.find_links is not None:
            wheels = sorted(self.options.find_links.glob("*.whl"))
            self.remote.copy("copying the other wheels", wheels, f"{ROOT}/wheels/")
            index = f"--no-index --find-links {ROOT}/wheels"
        self._run(
            "making an environment",
            f"test -x {ROOT}/venv/bin/python || {shlex.quote(self.board.python)} -m venv {ROOT}/venv",
        )
        pip = f"{ROOT}/venv/bin/python -m pip install --quiet --disable-pip-version-check {index}"
        file = shlex.quote(f"{ROOT}/wheels/{package.name}")
        # First by itself, so that a build of the same version takes the place of the last one; then what it needs.
        self._run("installing", f"{pip} --force-reinstall --no-deps {file} && {pip} {file}")
        self._run("noting what is installed", f"echo {digest} > {ROOT}/installed")

    def place_secrets(self) -> None:
        """Certificates and tokens, readable by the user alone."""
        if not self.options.secrets or self.options.dry_run:
            return
        self.tell("copying certificates and tokens")
        self._run("making a folder", f"mkdir -p -m 700 {ROOT}/secrets")
        self.remote.copy("copying secrets", [file for _, file in self.options.secrets], f"{ROOT}/secrets/")
        self._run("closing secrets", f"chmod 600 {ROOT}/secrets/*")

    def place_bundle(self, name: str, bundle: Bundle | None, folder: Path) -> None:
        """The device's half at `ROOT/bundles/NAME`."""
        if bundle is None:
            self.tell(f"pulling {name} from {self.options.server.partition(',')[0]}")
            if not self.options.dry_run:
                pull = ["pull", self.options.server.partition(",")[0], name, "-o", f"{ROOT}/bundles/{name}"]
                self._narrows("pulling the model", [*pull, *self._secrets("")])
            return
        archive = folder / f"{name}-{bundle.digest[:16]}.zip"
        self.tell(f"copying the device's half of {name}, {bundle.digest[:12]}")
        if self.options.dry_run:
            return
        bundle.write_archive(archive, Half.DEVICE)
        there = shlex.quote(f"{ROOT}/bundles/{archive.name}")
        if self.remote.ask("looking for the bundle", f"sha256sum {there} 2>/dev/null || true").split()[:1] != [
            sha256_of(archive)
        ]:
            self.remote.copy("copying the bundle", [archive], f"{ROOT}/bundles/")
        self._run("placing the bundle", f"ln -sfn {shlex.quote(archive.name)} {ROOT}/bundles/{name}")

    def try_bundle(self, name: str) -> None:
        """The golden vectors, on the board's own hardware."""
        self.tell("trying the graphs on the board")
        if not self.options.dry_run:
            self._narrows("trying the bundle", ["doctor", f"{ROOT}/bundles/{name}"])

    def start(self, name: str) -> None:
        """The service, restarted where anything about it is new."""
        unit, text = f"narrows-{name}.service", service_unit(name, self.command(name, "%h/"), ROOT)
        self.tell(f"starting {unit}")
        if self.options.dry_run:
            return
        place = f".config/systemd/user/{unit}"
        self._run(
            "writing the unit",
            f"mkdir -p .config/systemd/user .cache/narrows\ncat > {place}.new <<'END-OF-UNIT'\n{text}END-OF-UNIT\n"
            f"mv {place}.new {place}",
        )
        # Without lingering the service would end with the ssh session. A user may ask for it for himself.
        self._run("lingering", 'loginctl enable-linger "$(id -un)" 2>/dev/null || loginctl enable-linger || true')
        self._run(
            "starting the service",
            f"systemctl --user daemon-reload && systemctl --user enable --quiet {unit} "
            f"&& systemctl --user restart {unit} || {{ journalctl --user -u {unit} -n 5 -o cat >&2; exit 1; }}",
        )

    def command(self, name: str, home: str) -> list[str]:
        """What the service runs."""
        own = [f"{home}{ROOT}/venv/bin/narrows", "run", f"{home}{ROOT}/bundles/{name}"]
        wanted = ["--server", self.options.server, "--input", self.options.source, "--json"]
        return [*own, *wanted, *self._secrets(home), *self.options.arguments]

    def _secrets(self, home: str) -> list[str]:
        return [w for option, file in self.options.secrets for w in (option, f"{home}{ROOT}/secrets/{file.name}")]

    def _run(self, step: str, script: str) -> None:
        self.remote.ask(step, script)

    def _narrows(self, step: str, words: Sequence[str]) -> None:
        self.remote.ask(step, shlex.join([f"{ROOT}/venv/bin/narrows", *words]))


def _check_wheel(package: Path, board: Board) -> None:
    """A wheel says in its name where it runs (PEP 427)."""
    if package.suffix != ".whl":
        return
    platforms = package.stem.rpartition("-")[2]
    if platforms != "any" and not any(one.endswith(board.machine) for one in platforms.split(".")):
        raise DeployError(
            f"{package.name} is not for {board.machine}; build it there (`pip wheel . --no-deps`), or leave --wheel out"
        )


def _build(folder: Path, machine: str) -> Path:
    """The package out of this checkout: a wheel for a machine of this kind, a source archive for another.

    The board builds a wheel of the source archive itself; without a compiler the codec's twin in Python serves.
    """
    if not (_SOURCE / "pyproject.toml").is_file():
        raise DeployError("this narrows is installed and no checkout; give the wheel to install there with --wheel")
    tree, made = folder / "source", folder / "made"
    leave = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "tests", "benchmarks")
    shutil.copytree(_SOURCE, tree, ignore=leave)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    alike = machine == platform.machine()
    command = [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(made), str(tree)]
    if not alike:
        made.mkdir()
        code = f"from setuptools import build_meta; build_meta.build_sdist({str(made)!r})"
        command = [sys.executable, "-c", code]
    # The same sources make the same bytes, so that a second time there is nothing to install.
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "315532800"}
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, env=environment, check=False)
    packages = sorted(made.glob("narrows-*"))
    if done.returncode != 0 or not packages:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise DeployError(f"the package cannot be built here ({last}); build it elsewhere and give it with --wheel")
    return packages[0]
