"""`inference.GRPCInferenceService`: messages in, the data plane's plain values behind it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import grpc
import grpc.aio
import numpy as np

from ...protos import oip_pb2 as pb
from ...runtime.answer import Wanted
from ...runtime.errors import DrainingError, NarrowsError, PermissionDeniedError, UsageError
from ...runtime.oip import SERVICE, add_outputs, tensors_of
from ...runtime.version import VERSION
from ..clients import Client
from ..logs import fields
from ..plane import DataPlane
from ..security import client_of
from ..status import Context, ending, public
from .models import Kind, OipModel, all_models, bundle_name, find
from .statistics import Statistics

_log = logging.getLogger(__name__)

STREAM = "ModelStreamInfer"
METHODS = (
    *("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"),
    *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "ModelInfer", STREAM),
)
"""Of the service, as far as this server has them."""

_ERRORS_AS_STATUS = "triton_grpc_error"
"""A stream that was opened with this metadata ends with the first error as its status, as Triton's does."""
_TIMEOUT = "timeout"
"""Triton's request parameter: microseconds that the request may wait."""


class Control(Protocol):
    """What changes the models that are loaded."""

    @property
    def unloaded(self) -> Sequence[str]:
        """Names of models that were unloaded by request."""
        ...

    async def load(self, name: str) -> None:
        """Load a model of the server's folder."""
        ...

    async def unload(self, name: str) -> None:
        """Let go of a model."""
        ...


class OpenInference:
    """The servicer: metadata and statistics, one request, a stream of requests."""

    def __init__(self, plane: DataPlane, max_batch: int, control: Control | None = None) -> None:
        self._plane = plane
        self._control = control
        self._max_batch = max_batch
        self._statistics = Statistics()
        plane.observers.append(self._statistics)

    @property
    def methods(self) -> dict[str, Callable[[Any, Context], Any]]:
        """The handler of each method; that of `STREAM` takes an iterator of requests and is an iterator itself."""
        plain: dict[str, Callable[[Any, Client], Any]] = {
            "ServerLive": lambda _, __: pb.ServerLiveResponse(live=True),
            "ServerReady": lambda _, __: pb.ServerReadyResponse(ready=not self._plane.draining),
            "ServerMetadata": _server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
        }
        return {
            **{name: _plain(answer) for name, answer in plain.items()},
            "RepositoryModelLoad": self._model_load,
            "RepositoryModelUnload": self._model_unload,
            "ModelInfer": self._model_infer,
            STREAM: self._model_stream_infer,
        }

    async def infer(self, request: pb.ModelInferRequest, client: Client, left_s: float | None) -> pb.ModelInferResponse:
        """Answer one request: every element of its batch is a frame of its own, and shares runs with anyone's.

        Raises:
            NarrowsError: the first error of any of its frames; a response of the protocol is whole or not at all.
        """
        limits = self._plane.limits
        model = find(self._plane.catalogue, client, request.model_name, request.model_version, limits)
        inputs = tensors_of(request.inputs, request.raw_input_contents, limits.max_elements)
        frames = model.frames(inputs, _deadline_ms(request, left_s))
        wanted = [output.name for output in request.outputs]
        tails = model.tails(frames, wanted)
        replies = await self._plane.infer_many(model.served, frames, Wanted(tails=tails), client)
        for reply in replies:
            if reply.error is not None:
                raise reply.error
        response = pb.ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
        rows = [model.outputs(frame, reply, tails) for frame, reply in zip(frames, replies, strict=True)]
        stacked = {name: _stack([row[name] for row in rows], model) for name in (rows[0] if rows else {})}
        add_outputs(response, stacked, wanted)
        return response

    async def _model_infer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        async with ending(context):
            return await self.infer(request, client_of(context), context.time_remaining())

    async def _model_stream_infer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Requests in, responses out in the same order; an error is a response like any other."""
        async with ending(context):
            client = client_of(context)
            as_status = dict(context.invocation_metadata() or ()).get(_ERRORS_AS_STATUS) == "true"
            with self._plane.holdings.stream(client):
                stream = _Stream(self, requests, client, self._plane)
                async for request, result in stream:
                    if isinstance(result, NarrowsError):
                        if as_status:
                            raise result
                        response = pb.ModelStreamInferResponse(error_message=str(result))
                        response.infer_response.id = request.id
                        yield response
                    else:
                        yield pb.ModelStreamInferResponse(infer_response=result)

    def _model_ready(self, request: pb.ModelReadyRequest, client: Client) -> pb.ModelReadyResponse:
        try:
            find(self._plane.catalogue, client, request.name, request.version)
        except NarrowsError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=not self._plane.draining)

    def _model_metadata(self, request: pb.ModelMetadataRequest, client: Client) -> pb.ModelMetadataResponse:
        model = find(self._plane.catalogue, client, request.name, request.version)
        versions = [served.model.path.name for served in self._plane.catalogue.versions(model.served.model.name)]
        return model.metadata(versions)

    def _model_config(self, request: pb.ModelConfigRequest, client: Client) -> pb.ModelConfigResponse:
        model = find(self._plane.catalogue, client, request.name, request.version)
        return pb.ModelConfigResponse(config=model.config(self._max_batch))

    def _model_statistics(self, request: pb.ModelStatisticsRequest, client: Client) -> pb.ModelStatisticsResponse:
        catalogue = self._plane.catalogue
        if request.name:
            models = [find(catalogue, client, request.name, request.version)]
        else:
            models = all_models(catalogue, client)
        count = self._statistics.message
        return pb.ModelStatisticsResponse(
            model_stats=[
                count(m.served.model.name, split=m.kind is not Kind.WHOLE, name=m.name, version=m.version)
                for m in models
            ]
        )

    def _repository_index(self, request: pb.RepositoryIndexRequest, client: Client) -> pb.RepositoryIndexResponse:
        state = "UNAVAILABLE" if self._plane.draining else "READY"
        if request.ready and self._plane.draining:
            return pb.RepositoryIndexResponse()
        entry = pb.RepositoryIndexResponse.ModelIndex
        models = all_models(self._plane.catalogue, client)
        gone = [name for name in self._control.unloaded if client.may_use(name)] if self._control else []
        found = [entry(name=model.name, version=model.version, state=state) for model in models]
        if not request.ready:
            found += [entry(name=name, state="UNAVAILABLE", reason="unloaded") for name in gone]
        return pb.RepositoryIndexResponse(models=found)

    async def _model_load(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        async with ending(context):
            control, name = self._may_control(request, client_of(context))
            await control.load(name)
            return pb.RepositoryModelLoadResponse()

    async def _model_unload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        async with ending(context):
            control, name = self._may_control(request, client_of(context))
            await control.unload(name)
            return pb.RepositoryModelUnloadResponse()

    def _may_control(
        self, request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest, client: Client
    ) -> tuple[Control, str]:
        """Who changes what is loaded, and the name of the bundle's model, for those who may have it changed.

        Raises:
            PermissionDeniedError: this server allows no loading over the wire, or not to this client.
            UsageError: the request brings a configuration or files: models come from the server's own folder alone.
        """
        name = bundle_name(request.model_name)
        client.check(name)
        if self._control is None:
            raise PermissionDeniedError("models are not loaded over the wire here; see narrows serve --allow-load")
        if not client.may_load:
            raise PermissionDeniedError("this token may not load and unload models; its line in the file lacks +load")
        if set(request.parameters) - {"unload_dependents"}:
            raise UsageError("models come from the server's own folder: no configuration and no files are taken")
        _log.info("loading is asked for", extra=fields(client=client.name, model=name, what=type(request).__name__))
        return self._control, name


def add_open_inference(methods: Mapping[str, Callable[[Any, Context], Any]], server: grpc.aio.Server) -> None:
    """Register handlers under the service's public name, with messages of our own package."""
    handlers = {name: _unary(name, handler) for name, handler in methods.items() if name != STREAM}
    handlers[STREAM] = grpc.stream_stream_rpc_method_handler(
        methods[STREAM],
        request_deserializer=pb.ModelInferRequest.FromString,
        response_serializer=pb.ModelStreamInferResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


class _Stream:
    """Requests of one stream under way, in order; no more at a time than the limit."""

    def __init__(
        self, service: OpenInference, requests: AsyncIterator[pb.ModelInferRequest], client: Client, plane: DataPlane
    ) -> None:
        self._service = service
        self._requests = requests
        self._client = client
        self._plane = plane
        self._answers: asyncio.Queue[tuple[pb.ModelInferRequest, asyncio.Task[pb.ModelInferResponse]] | None]
        self._answers = asyncio.Queue(plane.limits.max_in_flight)

    async def __aiter__(self) -> AsyncIterator[tuple[pb.ModelInferRequest, pb.ModelInferResponse | NarrowsError]]:
        reader = asyncio.create_task(self._read(), name="read requests")
        draining = asyncio.create_task(self._plane.drain_begun.wait())
        try:
            while (entry := await self._next(draining)) is not None:
                request, answer = entry
                try:
                    yield request, await answer
                except NarrowsError as error:
                    yield request, error
                except Exception as error:  # noqa: BLE001 - logged here, and kept from strangers
                    yield request, public(error)
        finally:
            reader.cancel()
            draining.cancel()
            while not self._answers.empty():
                left = self._answers.get_nowait()
                if left is not None:
                    left[1].cancel()

    async def _next(
        self, draining: asyncio.Task[Any]
    ) -> tuple[pb.ModelInferRequest, asyncio.Task[pb.ModelInferResponse]] | None:
        """The next answer under way; None when the client has half-closed.

        Raises:
            DrainingError: the server is going down, and everything that was taken is answered.
        """
        if not self._answers.empty():
            return self._answers.get_nowait()
        following = asyncio.create_task(self._answers.get())
        await asyncio.wait((following, draining), return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            return following.result()
        following.cancel()
        raise DrainingError("the server is going down; connect again, elsewhere or later")

    async def _read(self) -> None:
        async for request in self._requests:
            answer = asyncio.create_task(self._service.infer(request, self._client, None))
            await self._answers.put((request, answer))
        await self._answers.put(None)


def _unary(name: str, answer: Callable[[Any, Context], Awaitable[Any]]) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=getattr(pb, f"{name}Request").FromString,
        response_serializer=getattr(pb, f"{name}Response").SerializeToString,
    )


def _plain(answer: Callable[[Any, Client], Any]) -> Callable[[Any, Context], Awaitable[Any]]:
    async def handler(request: Any, context: Context) -> Any:
        async with ending(context):
            return answer(request, client_of(context))

    return handler


def _server_metadata(_: pb.ServerMetadataRequest, __: Client) -> pb.ServerMetadataResponse:
    return pb.ServerMetadataResponse(
        name="narrows", version=VERSION, extensions=["model_configuration", "model_repository", "statistics"]
    )


def _deadline_ms(request: pb.ModelInferRequest, left_s: float | None) -> int:
    """The sooner of the call's deadline and the request's own timeout; 0 for neither."""
    limits = [] if left_s is None else [left_s * 1e3]
    if _TIMEOUT in request.parameters:
        limits.append(request.parameters[_TIMEOUT].int64_param / 1e3)
    return max(1, round(min(limits))) if limits else 0


def _stack(arrays: list[np.ndarray[Any, Any]], model: OipModel) -> np.ndarray[Any, Any]:
    return np.stack(arrays) if model.manifest.batched or model.kind is Kind.SPLIT else arrays[0]
