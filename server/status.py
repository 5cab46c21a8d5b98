"""How a call ends that an error ends: one table, and nothing of the server's insides."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc
import grpc.aio

from ..runtime.errors import InternalError, NarrowsError, OverloadedError
from .logs import REQUEST_KEY, fields, request

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

CODE_KEY = "narrows-code"
"""Trailing metadata of a call that an error ended: the error's stable code."""
PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Beside it, when the server is overloaded: when to try again. gRPC's own clients heed it (proposal A6)."""


@asynccontextmanager
async def ending(context: Context) -> AsyncIterator[None]:
    """What leaves a handler becomes the call's status: our errors by their table, any other as a neutral text."""
    try:
        yield
    except NarrowsError as error:
        await abort(context, error)
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # noqa: BLE001 - logged there, and kept from strangers
        await abort(context, public(error))


def public(error: Exception) -> InternalError:
    """What strangers are told of an error that has no class of its own; the log is told everything."""
    _log.error("a call failed in a way that has no error of its own", exc_info=error)
    return InternalError(f"the server failed on this; its log says why, at request {request.get() or 'unknown'}")


async def abort(context: Context, error: NarrowsError) -> NoReturn:
    """End a call with an error: its status, its public text, and its stable code beside them."""
    trailing = [(CODE_KEY, error.code), (REQUEST_KEY, request.get())]
    _log.info("a call ends in an error", extra=fields(code=error.code, text=str(error)))
    if isinstance(error, OverloadedError) and error.retry_ms:
        trailing.append((PUSHBACK_KEY, str(error.retry_ms)))
    await context.abort(grpc.StatusCode[error.grpc_status], str(error), trailing_metadata=tuple(trailing))
    raise AssertionError("abort always raises")
