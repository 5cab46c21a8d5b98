"""`grpc.health.v1` for the whole server and for each model."""

from __future__ import annotations

from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from .catalogue import Catalogue

SERVICE_NAME: str = health.SERVICE_NAME

_SPLIT = "narrows.v1.SplitInference"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_GONE = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Keeps the health service in step with the catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._servicer: Any = health.aio.HealthServicer()  # type: ignore[attr-defined]  # set at run time
        self._known: set[str] = set()

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to a server."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def refresh(self) -> None:
        """SERVING for every model there is, and SERVICE_UNKNOWN for those that were."""
        names = {*self._catalogue.names, _SPLIT}
        for name in names | self._known:
            await self._servicer.set(name, _SERVING if name in names else _GONE)
        self._known |= names

    async def leave(self) -> None:
        """NOT_SERVING for everything, for good."""
        await self._servicer.enter_graceful_shutdown()
