"""The server as a process: load, listen, serve, drain, end."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import grpc.aio

from ..runtime.errors import MissingDependencyError, UsageError
from ..runtime.link import new_server
from ..runtime.notify import READY, STOPPING, notify
from .clients import TokenFile
from .heads import HeadStore
from .health import Health
from .oip import OpenInference
from .options import ServeOptions
from .plane import DataPlane, PlaneOptions
from .repository import Changes, Loader, Repository
from .security import Gate, server_credentials
from .service import SplitService, add_services
from .tally import Tally

if TYPE_CHECKING:
    from .web import WebServer

_log = logging.getLogger(__name__)

_STATUS_S = 5.0
_STOP_S = 0.25
"""For calls that outlived the draining: health watches, mostly, which never end by themselves."""


class Server:
    """All parts of one server, put together. Made and used on one event loop.

    server = Server(options)
    address = await server.start()
    ...
    await server.stop()
    """

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._heads = HeadStore()
        loader = Loader(self._heads, options.limits, options.session, options.batch)
        self._repository = Repository(options.bundles, loader)
        self._looking = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self.plane = DataPlane(PlaneOptions(options.limits, options.clients, options.batch))
        self._health = Health(self.plane.catalogue)
        self._service = SplitService(self.plane, options.max_stream_s)
        self._grpc: grpc.aio.Server | None = None
        self._web: WebServer | None = None

    async def start(self) -> str:
        """Load, listen and serve.

        Returns:
            Where it listens, "host:port".

        Raises:
            BundleError: nothing to serve.
            UsageError: the address cannot be listened on, or a file of certificates or tokens is unfit.
        """
        tokens = TokenFile(self._options.tokens) if self._options.tokens else None
        self.plane.catalogue.apply(await asyncio.to_thread(self._repository.open))
        self._grpc = new_server(self._options.limits.max_frame_bytes, (Gate(tokens),))
        control = self if self._options.allow_load else None
        inference = OpenInference(self.plane, self._options.batch.max_batch, control)
        add_services(self._grpc, self._service, inference, self._health)
        address = self._listen(self._grpc)
        await self._health.refresh()
        if self._options.tracing:
            self._trace()
        if self._options.metrics_port is not None:
            self._web = self._show(self._options.host, self._options.metrics_port)
        await self._grpc.start()
        if self._options.watch_s:
            self._watcher = asyncio.create_task(self._watch(), name="watch the bundles")
        _log.info("serving %s on %s", ", ".join(self.plane.catalogue.names), address)
        return address

    async def look(self) -> None:
        """Look at the folder of bundles: load what is new, replace what changed, retire what is gone."""
        await self._change(self._repository.look)

    async def load(self, name: str) -> None:
        """Load a model of the folder, by request.

        Raises:
            ModelNotFoundError: the folder has no bundle of that name.
            BundleError: none of its bundles can be loaded.
        """
        await self._change(lambda: self._repository.load(name))

    async def unload(self, name: str) -> None:
        """Let go of a model, by request; streams that hold it go on until they end.

        Raises:
            ModelNotFoundError: nothing of that name is loaded.
        """
        await self._change(lambda: self._repository.unload(name))

    @property
    def unloaded(self) -> Sequence[str]:
        """Names of models that were unloaded by request."""
        return self._repository.unloaded

    async def _change(self, change: Callable[[], Changes]) -> None:
        async with self._looking:
            changes = await asyncio.to_thread(change)
            self.plane.catalogue.apply(changes)
            await self._health.refresh()
        if changes.added or changes.removed:
            _log.info("%d bundles came, %d went", len(changes.added), len(changes.removed))

    async def stop(self) -> None:
        """Drain, within `drain_s`, then end everything."""
        if self._watcher is not None:
            self._watcher.cancel()
        if self._grpc is not None:
            _log.info("draining")
            await self._health.leave()
            try:
                await asyncio.wait_for(self._service.drain(), self._options.drain_s - 2 * _STOP_S)
            except TimeoutError:
                _log.warning("streams are cut off after %.1f s of draining", self._options.drain_s)
            await self._grpc.stop(_STOP_S)
        if self._web is not None:
            await asyncio.to_thread(self._web.close)
        await self.plane.close()
        self._heads.close()

    @property
    def metrics_address(self) -> str:
        """Where metrics and status are shown, "host:port"; empty where they are not."""
        return self._web.address if self._web else ""

    def _trace(self) -> None:
        try:
            from .tracing import Tracing
        except ImportError as error:
            raise MissingDependencyError(f"spans need: pip install 'narrows[otel]' ({error})") from None
        self.plane.observers.append(Tracing())

    def _show(self, host: str, port: int) -> WebServer:
        try:
            from .metrics import Metrics
            from .web import WebServer
        except ImportError as error:
            raise MissingDependencyError(f"metrics need: pip install 'narrows[server]' ({error})") from None
        plane, loop, tally = self.plane, asyncio.get_running_loop(), Tally()
        metrics = Metrics(plane.catalogue, plane.holdings)
        plane.observers += [tally, metrics]

        async def summary() -> dict[str, object]:
            return tally.summary(plane.catalogue, plane.holdings)

        def status() -> dict[str, object]:
            return asyncio.run_coroutine_threadsafe(summary(), loop).result(_STATUS_S)

        web = WebServer(host, port, metrics.registry, status)
        _log.info("metrics and status on http://%s", web.address)
        return web

    def _listen(self, server: grpc.aio.Server) -> str:
        options = self._options
        host = f"[{options.host}]" if ":" in options.host.strip("[]") else options.host
        try:
            if options.tls is None:
                port = server.add_insecure_port(f"{host}:{options.port}")
            else:
                port = server.add_secure_port(f"{host}:{options.port}", server_credentials(options.tls))
        except RuntimeError:
            raise UsageError(
                f"cannot listen on {host}:{options.port}; another process may have the port: choose one with --port"
            ) from None
        return f"{host}:{port}"

    async def listen(self) -> Listening:
        """As `start`, with more to say."""
        address = await self.start()
        models = tuple(self.plane.catalogue.names)
        return Listening(address, models, self._options.tls is not None, self.metrics_address)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._options.watch_s)
            await self.look()


@dataclass(frozen=True, slots=True)
class Listening:
    """A server that devices can connect to."""

    address: str
    """ "host:port"."""
    models: tuple[str, ...]
    encrypted: bool
    metrics: str
    """Where metrics and the status page are, "host:port"; empty for nowhere."""


def serve(options: ServeOptions, *, ready: Callable[[Listening], None] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, then drain: frames that were taken are answered, streams are told.

    SIGHUP looks at the folder of bundles again.

    Args:
        options: all there is to say.
        ready: called when devices can connect.

    Returns:
        The exit status, 0.

    Raises:
        BundleError: nothing to serve.
        UsageError: the address cannot be listened on, or a file of certificates or tokens is unfit.
    """

    async def run() -> None:
        stop, again = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, again.set)
        await _run_server(Server(options), stop, again, ready or _ignore, _spare_the_collector)

    asyncio.run(run())
    return 0


async def _run_server(
    server: Server,
    stop: asyncio.Event,
    again: asyncio.Event,
    ready: Callable[[Listening], None],
    settled: Callable[[], None] = lambda: None,
) -> None:
    looking = asyncio.create_task(_look_when_told(server, again))
    try:
        listening = await server.listen()
        settled()
        ready(listening)
        notify(READY)
        await stop.wait()
        notify(STOPPING)
    finally:
        looking.cancel()
        await server.stop()


async def _look_when_told(server: Server, again: asyncio.Event) -> None:
    while True:
        await again.wait()
        again.clear()
        await server.look()


def _spare_the_collector() -> None:
    """Take what is there for good out of the garbage collector's rounds. Only for a process that is all ours."""
    gc.collect()
    gc.freeze()


def _ignore(_: Listening) -> None:
    """Nobody wants to know."""


class ServerThread:
    """A server in this process, on a thread with an event loop of its own.

    with ServerThread(ServeOptions(Path("bundles"), port=0)) as server:
        device = narrows.Device(bundle, server.address)

    Leaving the block drains it.
    """

    def __init__(self, options: ServeOptions) -> None:
        self.address = ""
        """Where it listens, "host:port"."""
        self.metrics_address = ""
        """Where metrics and status are shown; empty where they are not."""
        self._options = options
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._again: asyncio.Event
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

    def look(self) -> None:
        """Have the folder of bundles looked at again; returns at once."""
        self._loop.call_soon_threadsafe(self._again.set)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as failure:  # noqa: BLE001 - carried to the thread that waits
            self._failure = failure
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop, self._again = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        server = Server(self._options)

        def started(listening: Listening) -> None:
            self.address, self.metrics_address = listening.address, listening.metrics
            self._ready.set()

        await _run_server(server, self._stop, self._again, started)
