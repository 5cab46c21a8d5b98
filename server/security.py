"""Certificates of the server, and the gate that every call passes."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from ..runtime.errors import NarrowsError, UsageError
from .clients import Client, TokenFile, caller
from .logs import SENT_KEY, new_request, request
from .status import Context, abort

_log = logging.getLogger(__name__)

OPEN_METHODS = ("/grpc.health.v1.Health/",)
"""What may be called without a token: a load balancer's probe has none."""


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """The server's certificate, and whose clients it lets in."""

    cert: Path
    """PEM: the server's certificate and those between it and the root."""
    key: Path
    """PEM: its private key, not encrypted."""
    client_ca: Path | None = None
    """PEM: with it, every client has to show a certificate of this authority (mutual TLS)."""


class _Certificates:
    """The files of `TlsOptions`, read again for the next handshake after they changed."""

    def __init__(self, options: TlsOptions) -> None:
        self._options = options
        self._stamp = self._look()
        self.current = self._read()

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """New certificates, or None where they are those of the last handshake."""
        try:
            stamp = self._look()
            if stamp == self._stamp:
                return None
            current = self._read()
        except UsageError as error:
            _log.error("the certificate stays as it was: %s", error)
            return None
        self._stamp, self.current = stamp, current
        _log.info("the certificate is read again from %s", self._options.cert)
        return current

    def _files(self) -> list[Path]:
        return [path for path in (self._options.key, self._options.cert, self._options.client_ca) if path]

    def _look(self) -> list[tuple[int, int]]:
        try:
            stats = [path.stat() for path in self._files()]
        except OSError as error:
            raise UsageError(f"{error.filename} cannot be read ({error.strerror})") from None
        return [(stat.st_ino, stat.st_mtime_ns) for stat in stats]

    def _read(self) -> grpc.ServerCertificateConfiguration:
        check_pair(self._options)
        try:
            key, cert, *client_ca = (path.read_bytes() for path in self._files())
        except OSError as error:
            raise UsageError(f"{error.filename} cannot be read ({error.strerror})") from None
        return grpc.ssl_server_certificate_configuration([(key, cert)], client_ca[0] if client_ca else None)


def server_credentials(options: TlsOptions) -> grpc.ServerCredentials:
    """Credentials that follow their files: a renewed certificate is shown from the next handshake on.

    Raises:
        UsageError: a file that cannot be read, or a key that is not the certificate's.
    """
    certificates = _Certificates(options)
    return grpc.dynamic_ssl_server_credentials(
        certificates.current,
        certificates.fetch,  # type: ignore[arg-type]  # may return None, whatever the stubs say
        require_client_authentication=options.client_ca is not None,
    )


def check_pair(options: TlsOptions) -> None:
    """Refuse a key that does not belong to its certificate: gRPC would listen, and fail every handshake.

    Raises:
        UsageError: naming the files.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(options.cert, options.key, password=_no_password)
    except (OSError, ValueError) as error:
        raise UsageError(f"{options.cert} and {options.key} are no certificate and its key ({error})") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted")


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Says who is calling, before any handler runs."""

    def __init__(self, tokens: TokenFile | None) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Give the call an id, and find the token's owner, or answer in the handler's place."""
        handler = await continuation(handler_call_details)
        tokens = None if handler_call_details.method.startswith(OPEN_METHODS) else self._tokens
        try:
            admit(tokens, dict(handler_call_details.invocation_metadata))
        except NarrowsError as error:
            return _refusal(handler, error)
        return handler


def admit(tokens: TokenFile | None, metadata: Mapping[str, str | bytes]) -> None:
    """Say of the call that is about to be served which request it is, and whose, for `client_of` and the log.

    Raises:
        UnauthenticatedError: no token, or none of these.
    """
    request.set(new_request(metadata.get(SENT_KEY)))
    if tokens is not None:
        caller.set(tokens.identify(str(metadata.get("authorization", ""))))


def client_of(context: Context) -> Client:
    """Who is calling: the token's owner, the certificate's, or just a connection."""
    sent = dict(context.invocation_metadata() or ()).get("traceparent", "")
    traceparent = sent if isinstance(sent, str) else ""
    known = caller.get(None)
    if known is not None:
        return replace(known, trace=traceparent, request=request.get())
    names = list(context.auth_context().get("x509_common_name", ()))
    name = names[0].decode(errors="replace") if names else context.peer()
    # Without tokens all are alike: who switches loading on for these lets everybody who can connect.
    return Client(name, may_load=True, trace=traceparent, request=request.get())


def _refusal(handler: grpc.RpcMethodHandler[Any, Any] | None, error: NarrowsError) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of the same kind that only says no."""

    async def refuse(_: Any, context: Context) -> None:
        await abort(context, error)

    if handler is not None and handler.response_streaming:
        kind = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return kind(refuse)
    return grpc.unary_unary_rpc_method_handler(refuse)
