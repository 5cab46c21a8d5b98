"""The gRPC service `narrows.v1.SplitInference`: messages in, the data plane's plain values behind it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace

import grpc
import grpc.aio
from grpc_reflection.v1alpha import reflection

from ..protos import split_pb2 as pb
from ..protos import split_pb2_grpc
from ..runtime.codec import labels
from ..runtime.errors import BundleError, DrainingError
from ..runtime.manifest import Cut
from ..runtime.version import VERSION
from ..runtime.wire import frame_from_wire, reply_to_wire, wanted_from_wire
from .clients import Client
from .heads import HeadArchive
from .health import SERVICE_NAME as HEALTH
from .health import Health
from .logs import fields
from .oip import OpenInference, add_open_inference
from .plane import DataPlane
from .repository import Model
from .security import client_of
from .status import Context, ending
from .stream import DeviceStream, require_digest

_log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["SplitInference"].full_name


class SplitService(split_pb2_grpc.SplitInferenceServicer):
    """The servicer. Keeps track of the streams that are open, so that they can be drained."""

    def __init__(self, plane: DataPlane, max_stream_s: float = 0.0) -> None:
        self._plane = plane
        self._max_stream_s = max_stream_s
        self._streams: set[DeviceStream] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:  # noqa: N802
        """The models that are current here."""
        async with ending(context):
            client, catalogue = client_of(context), self._plane.catalogue
            if request.model:
                client.check(request.model)
                found = [catalogue.find(request.model)]
            else:
                found = [served for served in catalogue.current() if client.may_use(served.model.name)]
            models = [_describe(served.model) for served in found]
            return pb.DescribeResponse(server_version=VERSION, coders=labels(), models=models)

    async def FetchHead(  # noqa: N802
        self, request: pb.FetchHeadRequest, context: Context
    ) -> AsyncIterator[pb.FetchHeadChunk]:
        """The device's half of a bundle, from `offset` on."""
        async with ending(context):
            client_of(context).check(request.model)
            model = self._plane.catalogue.find(request.model, request.bundle).model
            archive = _head_of(model)
            chunk = pb.FetchHeadChunk(bundle=model.digest, total_bytes=archive.size, sha256=archive.sha256)
            async for data in archive.chunks(request.offset):
                chunk.data = data
                yield chunk
                chunk = pb.FetchHeadChunk()

    async def Infer(self, request: pb.InferRequest, context: Context) -> pb.Outcome:  # noqa: N802
        """One frame. An error is the call's status, as for any unary call."""
        async with ending(context):
            client = client_of(context)
            client.check(request.model)
            served = self._plane.catalogue.find(request.model, require_digest(request.bundle))
            frame, wanted = frame_from_wire(request.frame), wanted_from_wire(request.answer)
            left_s = context.time_remaining()
            if left_s is not None and not frame.deadline_ms:
                frame = replace(frame, deadline_ms=max(1, round(left_s * 1e3)))
            reply = await self._plane.infer(served, frame, wanted, client)
            if reply.error is not None:
                raise reply.error
            return reply_to_wire(reply)

    async def Stream(self, _: AsyncIterator[pb.ClientMessage], context: Context) -> None:  # noqa: N802
        """Frames in, outcomes out; see `DeviceStream`."""
        async with ending(context):
            client = client_of(context)
            with self._plane.holdings.stream(client):
                stream = await DeviceStream.open(self._plane, context, client)
                if self._plane.draining:
                    raise DrainingError("the server is going down; connect again, elsewhere or later")
                with self._counted(stream), self._plane.catalogue.using(stream.served), _told(client, stream):
                    await stream.serve(self._max_stream_s)

    async def drain(self) -> None:
        """Take no new frame, tell every stream, and wait until the last has ended and every call has its answer."""
        self._plane.drain_begun.set()
        for stream in self._streams:
            stream.drain()
        await self._idle.wait()
        await self._plane.idle()

    @contextmanager
    def _counted(self, stream: DeviceStream) -> Iterator[None]:
        self._streams.add(stream)
        self._idle.clear()
        try:
            yield
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._idle.set()


@contextmanager
def _told(client: Client, stream: DeviceStream) -> Iterator[None]:
    """Tell the log of a stream: when it begins, and what came of it."""
    begun_s = time.monotonic()
    facts = {"client": client.name, "model": stream.served.model.name, "bundle": stream.served.model.digest[:12]}
    _log.info("a stream begins", extra=fields(**facts))
    try:
        yield
    finally:
        seconds = round(time.monotonic() - begun_s, 3)
        _log.info("a stream ends", extra=fields(**facts, frames=stream.frames, seconds=seconds))


def add_services(server: grpc.aio.Server, service: SplitService, open_inference: OpenInference, health: Health) -> None:
    """Register the split service, the Open Inference Protocol, health and reflection."""
    add_open_inference(open_inference.methods, server)
    split_pb2_grpc.add_SplitInferenceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    health.register(server)
    reflection.enable_server_reflection((SERVICE, HEALTH, reflection.SERVICE_NAME), server)


def _head_of(model: Model) -> HeadArchive:
    if model.head is None:
        raise BundleError(f"the server has no head of {model.name!r}; copy the device's half from where it was cut")
    return model.head


def _describe(model: Model) -> pb.ModelDescription:
    cuts = [_describe_cut(cut) for cut in model.bundle.manifest.cuts]
    return pb.ModelDescription(name=model.name, bundle=model.digest, cuts=cuts, whole=model.whole is not None)


def _describe_cut(cut: Cut) -> pb.CutDescription:
    qualities = [
        pb.QualityDescription(
            bits=math.ceil(quality.bits), payload_bytes=quality.payload_bytes, agreement=quality.agreement
        )
        for quality in cut.qualities
    ]
    return pb.CutDescription(name=cut.name, qualities=qualities, tails=cut.tail_names)
