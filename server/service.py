"""The gRPC service `narrows.v1.SplitInference`: messages in, the data plane's plain values behind it."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NoReturn

import grpc
import grpc.aio

from ..protos import split_pb2 as pb
from ..protos import split_pb2_grpc
from ..runtime.codec import labels
from ..runtime.errors import DrainingError, InternalError, NarrowsError
from ..runtime.manifest import Cut
from ..runtime.version import VERSION
from ..runtime.wire import frame_from_wire, reply_to_wire, wanted_from_wire
from .heads import HeadStore
from .plane import DataPlane
from .repository import Model
from .stream import Context, DeviceStream, require_digest

_log = logging.getLogger(__name__)

CODE_KEY = "narrows-code"
"""Trailing metadata of a call that an error ended: the error's stable code."""


class SplitService(split_pb2_grpc.SplitInferenceServicer):
    """The servicer. Keeps track of the streams that are open, so that they can be drained."""

    def __init__(self, plane: DataPlane, heads: HeadStore) -> None:
        self._plane = plane
        self._heads = heads
        self._streams: set[DeviceStream] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:  # noqa: N802
        """The models that are current here."""
        async with ending(context):
            repository = self._plane.repository
            models = [repository.find(request.model)] if request.model else repository.current()
            return pb.DescribeResponse(
                server_version=VERSION, coders=labels(), models=[_describe(model) for model in models]
            )

    async def FetchHead(  # noqa: N802
        self, request: pb.FetchHeadRequest, context: Context
    ) -> AsyncIterator[pb.FetchHeadChunk]:
        """The device's half of a bundle, from `offset` on."""
        async with ending(context):
            model = self._plane.repository.find(request.model, request.bundle)
            archive = await self._heads.get(model)
            chunk = pb.FetchHeadChunk(bundle=model.digest, total_bytes=archive.size, sha256=archive.sha256)
            async for data in archive.chunks(request.offset):
                chunk.data = data
                yield chunk
                chunk = pb.FetchHeadChunk()

    async def Infer(self, request: pb.InferRequest, context: Context) -> pb.Outcome:  # noqa: N802
        """One frame. An error is the call's status, as for any unary call."""
        async with ending(context):
            model = self._plane.repository.find(request.model, require_digest(request.bundle))
            frame, wanted = frame_from_wire(request.frame), wanted_from_wire(request.answer)
            reply = await self._plane.infer(model, frame, wanted, context.peer())
            if reply.error is not None:
                raise reply.error
            return reply_to_wire(reply)

    async def Stream(self, _: AsyncIterator[pb.ClientMessage], context: Context) -> None:  # noqa: N802
        """Frames in, outcomes out; see `DeviceStream`."""
        async with ending(context):
            stream = await DeviceStream.open(self._plane, context)
            if self._plane.draining:
                raise DrainingError("the server is going down; connect again, elsewhere or later")
            with self._counted(stream):
                await stream.serve()

    async def drain(self) -> None:
        """Take no new frame, tell every stream, and wait until the last has ended."""
        self._plane.draining = True
        for stream in self._streams:
            stream.drain()
        await self._idle.wait()

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


@asynccontextmanager
async def ending(context: Context) -> AsyncIterator[None]:
    """What leaves a handler becomes the call's status: our errors by their table, any other as a neutral text."""
    try:
        yield
    except NarrowsError as error:
        await _abort(context, error)
    except grpc.aio.AbortError:
        raise
    except Exception:  # noqa: BLE001 - logged here, and kept from strangers
        _log.exception("a call of %s failed in a way that has no error of its own", context.peer())
        await _abort(context, InternalError("the server failed on this call; its log says why"))


async def _abort(context: Context, error: NarrowsError) -> NoReturn:
    status = grpc.StatusCode[error.grpc_status]
    await context.abort(status, str(error), trailing_metadata=((CODE_KEY, error.code),))
    raise AssertionError("abort always raises")


def _describe(model: Model) -> pb.ModelDescription:
    cuts = [_describe_cut(cut) for cut in model.bundle.manifest.cuts]
    return pb.ModelDescription(name=model.name, bundle=model.digest, cuts=cuts)


def _describe_cut(cut: Cut) -> pb.CutDescription:
    qualities = [
        pb.QualityDescription(
            bits=math.ceil(quality.bits), payload_bytes=quality.payload_bytes, agreement=quality.agreement
        )
        for quality in cut.qualities
    ]
    return pb.CutDescription(name=cut.name, qualities=qualities)
