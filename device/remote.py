"""Another machine over the system's own ssh, which never asks for anything."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..runtime.errors import DeployError, UsageError

_PATIENCE_S = 15 * 60.0
"""For one step: a Raspberry Pi that builds a wheel takes minutes."""
_ADVICE = {
    "Permission denied": "no key of yours is let in; ssh-copy-id it there first",
    "Host key verification failed": "its key is not known yet; connect once by hand to look at it",
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "its key is another than before; find out why, then ssh-keygen -R it",
    "Could not resolve hostname": "there is no such name",
    "Connection refused": "no ssh server listens there",
    "timed out": "the machine does not answer",
    "No route to host": "the machine does not answer",
}


class Remote:
    """One machine."""

    def __init__(self, host: str, options: Sequence[str] = ()) -> None:
        """Prepare; nothing is sent yet.

        Args:
            host: as ssh takes it.
            options: as `ssh -o` takes them.

        Raises:
            UsageError: a name that ssh would take for an option.
        """
        if not host or host.startswith("-") or any(c.isspace() for c in host):
            raise UsageError(f"{host!r} is no machine; give USER@HOST")
        self.host = host
        self._options = [w for one in ("BatchMode=yes", "ConnectTimeout=10", *options) for w in ("-o", one)]

    def ask(self, step: str, script: str) -> str:
        """What a shell script says there, run in the user's home.

        Raises:
            DeployError: it failed, or there is no way in; its last line.
        """
        return self._run(step, ["ssh", *self._options, self.host, "sh", "-s"], f"set -eu\ncd\n{script}\n")

    def copy(self, step: str, files: Sequence[Path], folder: str) -> None:
        """Copy files into a folder under the user's home.

        Raises:
            DeployError: it failed.
        """
        if files:
            self._run(step, ["scp", "-q", *self._options, *map(str, files), f"{self.host}:{folder}"], "")

    def _run(self, step: str, command: list[str], text: str) -> str:
        try:
            done = subprocess.run(
                command, input=text, capture_output=True, text=True, timeout=_PATIENCE_S, check=False, errors="replace"
            )
        except FileNotFoundError:
            raise DeployError(f"there is no {command[0]} on this machine; install an OpenSSH client") from None
        except subprocess.TimeoutExpired:
            raise DeployError(f"{self.host}, {step}: nothing within {_PATIENCE_S / 60:.0f} minutes") from None
        if done.returncode == 0:
            return done.stdout
        said = [line.strip() for line in (done.stderr.strip() or done.stdout.strip()).splitlines() if line.strip()]
        last = said[-1] if said else f"it ended with {done.returncode} and no word"
        # 255 is ssh's own; anything else is what ran there.
        known = (advice for sign, advice in _ADVICE.items() if sign.lower() in done.stderr.lower())
        advice = next(known, "") if done.returncode == 255 or command[0] == "scp" else ""
        raise DeployError(f"{self.host}, {step}: {last}" + (f" ({advice})" if advice else ""))
