"""The same handlers and batchers behind Ray Serve, for tails on more than one machine.

Ray's proxies speak gRPC with the devices, a replica of a model's deployment has the model loaded and does what the
server's one process does otherwise, and Ray decides how many replicas there are and where. Nothing here queues, batches
or decodes: this module is what lies between Ray's ways and `SplitService`'s.

Ray's proxy finds a model's deployment by the metadata `application`, which devices send; with one model none is needed.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio

from ..protos import split_pb2 as pb
from ..protos import split_pb2_grpc
from ..runtime.bundle import read_manifest
from ..runtime.errors import BundleError, MissingDependencyError, NarrowsError, UsageError
from .app import Listening
from .clients import TokenFile
from .heads import HeadStore
from .oip import METHODS, STREAM, OpenInference, add_open_inference
from .options import ServeOptions
from .plane import DataPlane, PlaneOptions
from .repository import Changes, Loader, bundles_in, is_bundle
from .security import admit
from .service import SplitService
from .status import abort

_log = logging.getLogger(__name__)

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # not in the stubs
_OUTGOING = 64
"""Messages of one stream that wait for Ray to fetch them."""


@dataclass(frozen=True, slots=True)
class RayOptions:
    """How Ray spreads replicas. Each replica loads its model, so memory is taken once a replica."""

    address: str = ""
    """Of a cluster's head; empty for a cluster of this process's own."""
    min_replicas: int = 1
    max_replicas: int = 4
    streams: int = 8
    """Open streams of a replica above which another one is started."""
    cores: float = 1.0
    """That Ray sets aside for a replica."""
    everywhere: bool = True
    """A proxy on every node with a replica; False for one on the head alone."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise UsageError(
                f"replicas are at least 1 and at most the maximum: {self.min_replicas}…{self.max_replicas}"
            )
        if self.streams < 1 or self.cores <= 0:
            raise UsageError("streams of a replica and its cores must be positive")


class RayCall:
    """What the handlers use of gRPC's context, over what Ray gives a replica: the call's metadata, and its messages."""

    def __init__(self, context: Any, requests: AsyncIterator[Any] | None = None) -> None:
        self._context = context
        self._requests = requests
        self._outgoing: deque[Any] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """What the caller sent."""
        metadata: Sequence[tuple[str, str | bytes]] = self._context.invocation_metadata()
        return metadata

    def auth_context(self) -> Mapping[str, Any]:
        """Nothing: Ray's proxy takes no certificates."""
        return {}

    def peer(self) -> str:
        """The connection."""
        return str(self._context.peer())

    def time_remaining(self) -> float | None:
        """Ray does not say."""
        return None

    async def read(self) -> Any:
        """The next message, or gRPC's mark of the end."""
        assert self._requests is not None
        return await anext(self._requests, _EOF)

    async def write(self, message: Any) -> None:
        """Send a message."""
        self._outgoing.append(message)
        self._changed.set()
        while len(self._outgoing) >= _OUTGOING:
            self._room.clear()
            await self._room.wait()

    async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Sequence[tuple[str, str]]) -> None:
        """End the call with a status; Ray carries it to the caller beside the next message."""
        self._context.set_code(code)
        self._context.set_details(details)
        self._context.set_trailing_metadata(list(trailing_metadata))
        raise grpc.aio.AbortError

    async def messages(self, handler: asyncio.Task[Any]) -> AsyncIterator[Any]:
        """What the handler writes, until it has ended."""
        handler.add_done_callback(lambda _: self._changed.set())
        while True:
            while self._outgoing:
                message = self._outgoing.popleft()
                self._room.set()
                yield message
            if handler.done():
                break
            self._changed.clear()
            await self._changed.wait()
        await handler


class TailReplica:
    """One replica of one model: its bundles loaded and proven, its batchers, its streams."""

    async def __init__(self, paths: Sequence[Path], options: ServeOptions) -> None:  # type: ignore[misc]  # Ray awaits it
        self._tokens = TokenFile(options.tokens) if options.tokens else None
        self._heads = HeadStore()
        loader = Loader(self._heads, options.limits, options.session, options.batch)
        models = [await asyncio.to_thread(loader.load, path) for path in paths]
        self._plane = DataPlane(PlaneOptions(options.limits, options.clients, options.batch))
        self._plane.catalogue.apply(Changes(models, []))
        self._service = SplitService(self._plane, options.max_stream_s)
        self._inference = OpenInference(self._plane, options.batch.max_batch)

    async def Describe(self, request: pb.DescribeRequest, grpc_context: Any) -> Any:  # noqa: N802
        """See `SplitService`."""
        return await self._unary(self._service.Describe, request, grpc_context, pb.DescribeResponse)

    async def Infer(self, request: pb.InferRequest, grpc_context: Any) -> Any:  # noqa: N802
        """See `SplitService`."""
        return await self._unary(self._service.Infer, request, grpc_context, pb.Outcome)

    async def FetchHead(self, request: pb.FetchHeadRequest, grpc_context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """See `SplitService`."""
        call = RayCall(grpc_context)
        async for message in self._stream(call, lambda: self._service.FetchHead(request, call), pb.FetchHeadChunk):  # type: ignore[arg-type]
            yield message

    async def Stream(self, request: Any, grpc_context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """See `SplitService`."""
        call = RayCall(grpc_context, request)

        async def answers() -> AsyncIterator[Any]:
            handler = asyncio.create_task(self._service.Stream(request, call))  # type: ignore[arg-type]
            try:
                async for message in call.messages(handler):
                    yield message
            finally:
                handler.cancel()

        async for message in self._stream(call, answers, pb.ServerMessage):
            yield message

    async def _unary(self, handler: Callable[..., Any], request: Any, context: Any, empty: Callable[[], Any]) -> Any:
        call = RayCall(context)
        try:
            await self._admit(call)
            return await handler(request, call)
        except grpc.aio.AbortError:
            return empty()  # the status stands in the context

    async def _stream(
        self, call: RayCall, begin: Callable[[], AsyncIterator[Any]], empty: Callable[[], Any]
    ) -> AsyncIterator[Any]:
        try:
            await self._admit(call)
            async with aclosing(begin()) as messages:  # type: ignore[type-var]  # a generator, as all of them are
                async for message in messages:
                    yield message
        except grpc.aio.AbortError:
            yield empty()  # brings the context, and with it the status

    async def _admit(self, call: RayCall) -> None:
        try:
            admit(self._tokens, dict(call.invocation_metadata()))
        except NarrowsError as error:
            await abort(call, error)  # type: ignore[arg-type]  # it has what is used of a context


def _open_inference(name: str) -> Callable[..., Any]:
    """A method of the Open Inference Protocol, as Ray calls it."""
    if name == STREAM:

        async def stream(self: TailReplica, request: Any, grpc_context: Any) -> AsyncIterator[Any]:
            call, empty = RayCall(grpc_context), _oip_message("ModelStreamInfer")
            async for message in self._stream(call, lambda: self._inference.methods[name](request, call), empty):  # type: ignore[arg-type]
                yield message

        return stream

    async def unary(self: TailReplica, request: Any, grpc_context: Any) -> Any:
        return await self._unary(self._inference.methods[name], request, grpc_context, _oip_message(name))

    return unary


def _oip_message(method: str) -> Callable[[], Any]:
    from ..protos import oip_pb2

    message: Callable[[], Any] = getattr(oip_pb2, f"{method}Response")
    return message


for _name in METHODS:
    setattr(TailReplica, _name, _open_inference(_name))


def add_services(servicer: Any, server: Any) -> None:
    """What Ray's proxies are told to take; they put their own handlers in the place of these."""
    split_pb2_grpc.add_SplitInferenceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    add_open_inference(dict.fromkeys(METHODS, servicer), server)


def models_in(path: Path) -> dict[str, list[Path]]:
    """The bundles of each model in a folder, by the model's name.

    Raises:
        BundleError: there is none.
    """
    found: dict[str, list[Path]] = {}
    for bundle in [path] if is_bundle(path) else bundles_in(path):
        try:
            found.setdefault(read_manifest(bundle).name, []).append(bundle.resolve())
        except BundleError as error:
            _log.error("bundle %s is left out: %s", bundle.name, error)
    if not found:
        raise BundleError(f"no bundle in {path} can be served; cut one into it with narrows cut")
    return found


def deploy(options: ServeOptions, ray_options: RayOptions) -> Sequence[str]:
    """Run every model of the folder as an application of the cluster that this process is connected to; their names.

    Raises:
        BundleError: nothing to serve.
    """
    from ray import serve

    models = models_in(options.bundles)
    serve.start(
        proxy_location="EveryNode" if ray_options.everywhere else "HeadOnly",
        grpc_options={"port": options.port, "grpc_servicer_functions": [f"{__name__}.add_services"]},
    )
    for name, paths in models.items():
        plain: Any = serve.deployment(TailReplica)
        deployment = plain.options(
            name=name,
            ray_actor_options={"num_cpus": ray_options.cores},
            max_ongoing_requests=options.clients.max_streams,
            autoscaling_config={
                "min_replicas": ray_options.min_replicas,
                "initial_replicas": ray_options.min_replicas,
                "max_replicas": ray_options.max_replicas,
                "target_ongoing_requests": ray_options.streams,
            },
            graceful_shutdown_timeout_s=options.drain_s,
        )
        serve.run(deployment.bind(paths, options), name=name, route_prefix=f"/{quote(name, safe='')}")
    return sorted(models)


def serve_on_ray(
    options: ServeOptions, ray_options: RayOptions, *, ready: Callable[[Listening], None] | None = None
) -> int:
    """Serve on a Ray cluster until SIGTERM or SIGINT, then take the applications down.

    Args:
        options: as for `serve`; certificates, metrics and watching are Ray's or a balancer's business.
        ray_options: how to spread.
        ready: called when devices can connect.

    Returns:
        The exit status, 0.

    Raises:
        BundleError: nothing to serve.
        UsageError: an option that Ray's proxy cannot honour.
        MissingDependencyError: Ray is not installed.
    """
    check(options)
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise MissingDependencyError(f"this needs Ray: pip install 'narrows[ray]' ({error})") from None
    stop = threading.Event()
    ray.init(address=ray_options.address or None, log_to_driver=False, configure_logging=False)
    for number in (signal.SIGTERM, signal.SIGINT):  # after Ray, which puts handlers of its own there
        signal.signal(number, lambda *_: stop.set())
    names: Sequence[str] = ()
    try:
        names = deploy(options, ray_options)
        if ready is not None:
            ready(Listening(f"0.0.0.0:{options.port}", tuple(names), False, ""))
        stop.wait()
    finally:
        for name in names:
            serve.delete(name)
        ray.shutdown()
    return 0


def check(options: ServeOptions) -> None:
    """Refuse what Ray's proxy does not do.

    Raises:
        UsageError: naming it.
    """
    if options.tls is not None:
        raise UsageError("Ray Serve's proxy has no TLS: put a balancer with the certificates before it")
    if not options.insecure:
        raise UsageError(
            "Ray Serve's proxy listens on every address, without TLS: say --insecure where the network is trusted"
        )
    if options.port == 0 or options.watch_s or options.allow_load or options.metrics_port is not None:
        raise UsageError(
            "with --engine ray give a port, and leave --watch, --allow-load and --metrics-port out: serve again to "
            "replace bundles, and see Ray's own metrics"
        )
