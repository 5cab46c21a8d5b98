"""What `narrows serve` can be told."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from ..runtime.errors import UsageError
from ..runtime.frame import Limits
from ..runtime.session import SessionOptions, runtime
from .batcher import BatchOptions
from .clients import ClientLimits
from .security import TlsOptions

PROVIDERS = ("CUDAExecutionProvider", "OpenVINOExecutionProvider", "CPUExecutionProvider")
"""Execution providers, best first. TensorRT builds its engines for minutes when a bundle is loaded: say it by name."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """A server, said once and checked once."""

    bundles: Path
    """A folder of bundles, or one bundle."""
    host: str = "127.0.0.1"
    port: int = 8470
    """0 takes any free port; `ready` says which."""
    tls: TlsOptions | None = None
    tokens: Path | None = None
    """File of bearer tokens; without it anyone who can connect may use everything."""
    insecure: bool = False
    """Listen on an address that others can reach without TLS."""
    limits: Limits = field(default_factory=Limits)
    clients: ClientLimits = field(default_factory=ClientLimits)
    batch: BatchOptions = field(default_factory=BatchOptions)
    session: SessionOptions = field(default_factory=SessionOptions)
    metrics_port: int | None = None
    """Port of the metrics and the status page, on `host`; 0 takes any free one, None for neither."""
    allow_load: bool = False
    """Models may be loaded and unloaded over the wire; with tokens, by those that are marked `+load`."""
    tracing: bool = False
    """Make OpenTelemetry spans of frames."""
    watch_s: float = 0.0
    """Seconds between looks at the folder for new, changed and vanished bundles; 0 for looking on SIGHUP alone."""
    max_stream_s: float = 0.0
    """Age at which a stream is told to connect again, a tenth more or less, so that streams spread over servers that
    came later; 0 for never."""
    drain_s: float = 10.0
    """Between the signal to stop and the end of the process, at most."""

    def __post_init__(self) -> None:
        for port in (self.port, self.metrics_port or 0):
            if not 0 <= port <= 65535:
                raise UsageError(f"a port is 0 to 65535, not {port}")
        if self.drain_s <= 0:
            raise UsageError(f"draining needs some time: more than 0 s, not {self.drain_s}")
        if self.max_stream_s < 0:
            raise UsageError(f"a stream's age is 0 s or more, not {self.max_stream_s}")
        if self.watch_s < 0:
            raise UsageError(f"the folder is looked at every {self.watch_s} s? Say 0 for not at all")
        if not is_loopback(self.host) and not self.insecure and self.metrics_port is not None:
            raise UsageError(f"metrics and status are not encrypted: say --insecure to show them on {self.host}")
        if self.allow_load and self.tokens is None and not is_loopback(self.host):
            raise UsageError(
                f"{self.host} can be reached from other machines, and anyone could unload models: give --tokens, "
                "with +load for those who may"
            )
        if self.tls is None and not self.insecure and not is_loopback(self.host):
            raise UsageError(
                f"{self.host} can be reached from other machines, and there is no TLS: give a certificate, "
                "listen on 127.0.0.1, or say --insecure where the network is trusted"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address. A name other than localhost might mean anything."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def best_providers() -> tuple[str, ...]:
    """The execution providers that this ONNX Runtime has, in our order of preference."""
    present = set(runtime().get_available_providers())
    return tuple(provider for provider in PROVIDERS if provider in present)
