"""A real OpenSSH server on a free port of this machine, whose user's home is a folder of the test's."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/sbin")
MISSING = "no OpenSSH server here (Debian: apt install openssh-server openssh-client)"


@dataclass(frozen=True)
class Ssh:
    host: str
    options: tuple[str, ...]
    home: Path


def available() -> bool:
    return SSHD is not None and all(shutil.which(tool) for tool in ("ssh", "scp", "ssh-keygen"))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@contextmanager
def ssh_server(folder: Path) -> Iterator[Ssh]:
    """Takes one key, of this user; its sessions begin in `folder/home`."""
    assert SSHD is not None
    home = folder / "home"
    home.mkdir(parents=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where its unprivileged part is locked up
    own, host_key, port = _key(folder / "key"), _key(folder / "host"), _free_port()
    (folder / "authorized").write_text(own.with_suffix(".pub").read_text())
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {host_key}\nAuthorizedKeysFile {folder / 'authorized'}\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        f"SetEnv HOME={home}\nSubsystem sftp internal-sftp -d {home}\n"
    )
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key.with_suffix('.pub').read_text()}")
    log = (folder / "log").open("w")
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "config"], stderr=log)
    options = (
        f"Port={port}",
        f"IdentityFile={own}",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        f"UserKnownHostsFile={folder / 'known'}",
        "StrictHostKeyChecking=yes",
    )
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        yield Ssh(f"{getpass.getuser()}@127.0.0.1", options, home)
    finally:
        process.terminate()
        process.wait(10)
        log.close()
