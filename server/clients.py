"""Who is calling: tokens, what each may use, and how much one client may hold at a time."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from ..runtime.errors import OverloadedError, PermissionDeniedError, UnauthenticatedError, UsageError

_log = logging.getLogger(__name__)

_HASHED = "sha256:"
_LOAD = "+load"


@dataclass(frozen=True, slots=True)
class Client:
    """A caller as the server knows it."""

    name: str
    """The token's name, or the client certificate's, or the connection where there is neither. Queues are fair between
    names, and limits hold for each."""
    models: frozenset[str] | None = None
    """The models it may use; None for all."""
    may_load: bool = False
    """It may load and unload models, where the server allows that at all."""
    trace: str = ""
    """The `traceparent` that its call came with."""
    request: str = ""
    """Id of its call, as it stands in the log."""

    def may_use(self, model: str) -> bool:
        """Whether a model is among its own."""
        return self.models is None or model in self.models

    def check(self, model: str) -> None:
        """Refuse a model that is not among its own, whether it exists or not.

        Raises:
            PermissionDeniedError: naming the model alone.
        """
        if not self.may_use(model):
            raise PermissionDeniedError(f"this token does not cover model {model!r}; ask the operator of the server")


caller: ContextVar[Client] = ContextVar("caller")
"""The client of the call that is being served; set before any handler runs."""


@dataclass(frozen=True, slots=True)
class _Token:
    client: Client
    digest: bytes


class TokenFile:
    """Bearer tokens, one a line, read again when the file changes:

        # name   token, or its sha256     models, all when none is named
        greenhouse  9f0c…                 leaf-disease fruit-count
        gate        sha256:5e88489…       plates
        operator    41d7…                 +load

    `+load` lets a token load and unload models (those it covers), on a server that allows it over the wire.
    A change that cannot be read leaves the tokens that were valid before.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            UsageError: it cannot be read, or a line is no token.
        """
        self._path = path
        self._stamp = _stamp(path)
        self._tokens = _read_tokens(path)

    def identify(self, authorization: str) -> Client:
        """The client of a call.

        Args:
            authorization: the call's `authorization` metadata, "Bearer TOKEN".

        Raises:
            UnauthenticatedError: no token, or none of these.
        """
        self._reload()
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise UnauthenticatedError("this server wants a token: send `authorization: Bearer TOKEN`")
        digest = hashlib.sha256(token.strip().encode()).digest()
        found = None
        for known in self._tokens:  # all of them, so that the time says nothing about which was nearly right
            if hmac.compare_digest(digest, known.digest):
                found = known.client
        if found is None:
            raise UnauthenticatedError("this token is not known here; ask the operator of the server for one")
        return found

    def _reload(self) -> None:
        try:
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._stamp = stamp
                self._tokens = _read_tokens(self._path)
                _log.info("%d tokens are read again from %s", len(self._tokens), self._path)
        except UsageError as error:
            _log.error("the tokens stay as they were: %s", error)


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What callers may hold at a time; above it they are turned away with a retry hint."""

    max_streams: int = 1024
    """Open streams, all together."""
    max_streams_per_client: int = 64
    max_bytes: int = 256 << 20
    """Payloads that were taken in and not answered yet, all together."""
    max_bytes_per_client: int = 64 << 20

    def __post_init__(self) -> None:
        if min(self.max_streams, self.max_streams_per_client, self.max_bytes, self.max_bytes_per_client) < 1:
            raise UsageError("limits of clients must be 1 or more")


@dataclass
class Holdings:
    """What callers hold now."""

    limits: ClientLimits = field(default_factory=ClientLimits)
    streams: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    all_streams: int = 0
    all_bytes: int = 0

    @contextmanager
    def stream(self, client: Client) -> Iterator[None]:
        """One stream more for as long as the block runs.

        Raises:
            OverloadedError: it would be one too many.
        """
        limits = self.limits
        if self.all_streams >= limits.max_streams or self.streams[client.name] >= limits.max_streams_per_client:
            raise OverloadedError(
                f"{self.streams[client.name]} streams of yours and {self.all_streams} in all are open; allowed are "
                f"{limits.max_streams_per_client} and {limits.max_streams}",
                retry_ms=1000,
            )
        self.streams[client.name] += 1
        self.all_streams += 1
        try:
            yield
        finally:
            self.all_streams -= 1
            _subtract(self.streams, client.name, 1)

    def take(self, client: Client, size: int) -> None:
        """Payload bytes more, until `release`.

        Raises:
            OverloadedError: they would be too many.
        """
        limits = self.limits
        if self.all_bytes + size > limits.max_bytes or self.bytes[client.name] + size > limits.max_bytes_per_client:
            raise OverloadedError("too many bytes wait for their outcome; send less at a time", retry_ms=100)
        self.bytes[client.name] += size
        self.all_bytes += size

    def release(self, client: Client, size: int) -> None:
        """Payload bytes less."""
        self.all_bytes -= size
        _subtract(self.bytes, client.name, size)


def _subtract(counter: Counter[str], key: str, amount: int) -> None:
    counter[key] -= amount
    if not counter[key]:
        del counter[key]  # names of connections come and go: what holds nothing is not remembered


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise UsageError(f"the token file {path} cannot be read ({error.strerror})") from None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _read_tokens(path: Path) -> tuple[_Token, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the token file {path} cannot be read ({error})") from None
    tokens = [
        _token(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.partition("#")[0].strip()
    ]
    if not tokens:
        raise UsageError(f"{path} holds no token: one a line, NAME TOKEN [MODEL ...]")
    return tuple(tokens)


def _token(line: str, where: str) -> _Token:
    name, *rest = line.partition("#")[0].split()
    if not rest:
        raise UsageError(f"{where}: a line is NAME TOKEN [MODEL ...]")
    token, *models = rest
    try:
        digest = bytes.fromhex(token.removeprefix(_HASHED)) if token.startswith(_HASHED) else None
    except ValueError:
        digest = b""
    if digest is None:
        digest = hashlib.sha256(token.encode()).digest()
    if len(digest) != hashlib.sha256().digest_size:
        raise UsageError(f"{where}: after sha256: come 64 hexadecimal digits")
    covered = frozenset(model for model in models if model != _LOAD)
    return _Token(Client(name, covered or None, _LOAD in models), digest)
