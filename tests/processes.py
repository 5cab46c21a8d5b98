"""The command line in processes of its own, and servers that are quickly started again."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from narrows.runtime.session import SessionOptions
from narrows.server import BatchOptions, ServeOptions, serve


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


_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["__main__", "narrows.server.app", "processes"])


def _serve(options: ServeOptions, ready: Connection) -> None:
    serve(options, ready=lambda listening: ready.send(listening.address))


@contextmanager
def forked_server(bundles: Path, port: int = 0) -> Iterator[tuple[BaseProcess, str]]:
    """The same without the command line: a process that has everything imported when it begins, so that killing and
    starting many of them is a matter of tenths of a second."""
    theirs, ours = _forks.Pipe()
    options = ServeOptions(bundles, port=port, session=SessionOptions(threads=1), batch=BatchOptions(runs=1))
    process = _forks.Process(target=_serve, args=(options, ours), daemon=True)
    process.start()
    ours.close()
    try:
        yield process, theirs.recv()
    finally:
        process.kill()
        process.join()
        theirs.close()
