"""The one place that starts a server in a process of its own: for the demo, the load generator and the benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .runtime.errors import ServerUnavailableError

_DRAIN_S = 30.0


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A server that is up."""

    address: str
    """ "host:port" on this machine."""
    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def ended(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self.process.poll()


@contextmanager
def server_process(bundles: Path, *options: object) -> Iterator[ServerProcess]:
    """A server process on a free port of this machine; it is drained in the end.

    It has a session of its own, so that a Ctrl-C at the terminal is its starter's to deal with.

    Args:
        bundles: what it serves: a folder of bundles, or one.
        options: further words for `narrows serve`.

    Raises:
        ServerUnavailableError: it ended before it listened; it has said why on stderr.
    """
    words = ("serve", bundles, "--port", 0, "--json", *options)
    command = [sys.executable, "-m", "narrows", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise ServerUnavailableError(f"the server process ended with {process.wait()} before it listened")
        yield ServerProcess(json.loads(line)["address"], process)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=_DRAIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
