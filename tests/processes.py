"""The command line in processes of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def narrows(*arguments: object) -> list[str]:
    """A command for `subprocess`."""
    return [sys.executable, "-m", "narrows", *map(str, arguments)]


@contextmanager
def server_process(bundles: Path, *options: object, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A real server process, killed at the end if it still runs; yields it and its address."""
    command = narrows("serve", bundles, "--port", port, "--threads", 1, "--runs", 1, "--json", *options)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield process, json.loads(line)["address"]
    finally:
        process.kill()
        process.communicate()
