"""What a device shows a server, and what it wants to see of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from .errors import UsageError


@dataclass(frozen=True, slots=True)
class LinkSecurity:
    """Certificates and token of a device's connection.

    LinkSecurity(tls=True)                           a server with a certificate that everyone trusts
    LinkSecurity(ca=Path("ca.pem"), token="9f0c…")   one of our own authority, and a token
    """

    tls: bool = False
    """Encrypt, trusting the authorities that gRPC brings along; implied by `ca`."""
    ca: Path | None = None
    """PEM: the authority that the server's certificate has to be of."""
    cert: Path | None = None
    """PEM: the device's own certificate, for servers that ask for one."""
    key: Path | None = None
    """PEM: its private key."""
    token: str = ""
    """Sent with every call as `authorization: Bearer TOKEN`."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise UsageError("a device's certificate and its key go together: give both or none")
        if self.cert is not None and not self.encrypted:
            raise UsageError("a device's certificate is of use with TLS alone: say which authority the server has")

    @property
    def encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return self.tls or self.ca is not None

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel with TLS.

        Raises:
            UsageError: a file that cannot be read.
        """
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.cert))

    def authorize(self, channel: grpc.Channel) -> grpc.Channel:
        """The channel, with the token on every call."""
        return grpc.intercept_channel(channel, _Bearer(self.token)) if self.token else channel


def _read(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from None


@dataclass
class _Details(grpc.ClientCallDetails):
    """A call's details with other metadata: gRPC's own class cannot be made."""

    method: str
    timeout: float | None
    metadata: tuple[tuple[str, str | bytes], ...] | None
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _Bearer(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]  # generic in the stubs alone
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamStreamClientInterceptor,  # type: ignore[type-arg]
):
    """Adds the token to a call's metadata."""

    def __init__(self, token: str) -> None:
        self._header = ("authorization", f"Bearer {token}")

    def _intercept(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        metadata = (*(details.metadata or ()), self._header)
        authorized = _Details(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready, details.compression
        )
        return continuation(authorized, request)

    intercept_unary_unary = _intercept  # type: ignore[assignment]  # three kinds of call, one thing to do
    intercept_unary_stream = _intercept  # type: ignore[assignment]
    intercept_stream_stream = _intercept  # type: ignore[assignment]
