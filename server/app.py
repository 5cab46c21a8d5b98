"""The server as a process: load, listen, serve, drain, end."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from typing import Any, Self

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ..protos import split_pb2 as pb
from ..protos import split_pb2_grpc
from ..runtime.errors import UsageError
from ..runtime.link import new_server
from .heads import HeadStore
from .options import ServeOptions
from .plane import DataPlane
from .repository import Repository, load_repository
from .service import SplitService

_log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["SplitInference"].full_name
_STOP_S = 0.25
"""For calls that outlived the draining: health watches, mostly, which never end by themselves."""


def serve(options: ServeOptions, *, ready: Callable[[str], None] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, then drain: frames that were taken are answered, streams are told.

    Args:
        options: all there is to say.
        ready: called with "host:port" when devices can connect.

    Returns:
        The exit status, 0.

    Raises:
        BundleError: nothing to serve.
        UsageError: the address cannot be listened on.
    """

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await run_server(options, stop, ready or _ignore)

    asyncio.run(run())
    return 0


async def run_server(options: ServeOptions, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
    """Serve on the running event loop until `stop` is set, then drain.

    Raises:
        As `serve`.
    """
    repository = await asyncio.to_thread(load_repository, options.bundles, options.limits, options.session)
    plane, heads = DataPlane(repository, options.limits, options.batch), HeadStore()
    try:
        service = SplitService(plane, heads)
        server = new_server(options.limits.max_frame_bytes)
        split_pb2_grpc.add_SplitInferenceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
        states = await _add_health(server, repository)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        address = _listen(server, options)
        await server.start()
        _log.info("serving %d models on %s", len(repository), address)
        ready(address)
        await stop.wait()
        _log.info("draining")
        await states.enter_graceful_shutdown()
        await _drain(service, server, options.drain_s)
    finally:
        await asyncio.to_thread(plane.close)
        heads.close()


async def _drain(service: SplitService, server: grpc.aio.Server, drain_s: float) -> None:
    try:
        await asyncio.wait_for(service.drain(), drain_s - 2 * _STOP_S)
    except TimeoutError:
        _log.warning("streams are cut off after %.1f s of draining", drain_s)
    await server.stop(_STOP_S)


def _listen(server: grpc.aio.Server, options: ServeOptions) -> str:
    host = f"[{options.host}]" if ":" in options.host.strip("[]") else options.host
    try:
        port = server.add_insecure_port(f"{host}:{options.port}")
    except RuntimeError:
        raise UsageError(
            f"cannot listen on {host}:{options.port}; another process may have the port: choose one with --port"
        ) from None
    return f"{host}:{port}"


async def _add_health(server: grpc.aio.Server, repository: Repository) -> Any:
    servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]  # set at run time
    for name in (SERVICE, *(model.name for model in repository)):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return servicer


def _ignore(_: str) -> None:
    """Nobody wants to know the address."""


class ServerThread:
    """A server in this process, on a thread with an event loop of its own.

    with ServerThread(ServeOptions(Path("bundles"), port=0)) as server:
        device = narrows.Device(bundle, server.address)

    Leaving the block drains it.
    """

    def __init__(self, options: ServeOptions) -> None:
        self.address = ""
        """Where it listens, "host:port"."""
        self._options = options
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=self._run, name="narrows server")

    def __enter__(self) -> Self:
        """Start it, and wait until devices can connect.

        Raises:
            As `serve`.
        """
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Begin to drain; returns at once."""
        self._loop.call_soon_threadsafe(self._stop.set)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as failure:  # noqa: BLE001 - carried to the thread that waits
            self._failure = failure
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await run_server(self._options, self._stop, self._started)

    def _started(self, address: str) -> None:
        self.address = address
        self._ready.set()
