"""`narrows serve` and `narrows certs`: the server's side."""

from __future__ import annotations

import logging
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..runtime.errors import UsageError
from . import output
from .app import Json, Threads, app, need

if TYPE_CHECKING:
    from ..server import Listening


class EngineName(StrEnum):
    """What runs the tails."""

    PROCESS = "process"
    RAY = "ray"


class LogFormatName(StrEnum):
    """How a line of the log is written."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"


@app.command()
def serve(
    bundles: Annotated[Path, typer.Argument(help="A folder of bundles, or one bundle.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any that is free.")] = 8470,
    tls_cert: Annotated[Path | None, typer.Option(help="The server's certificate (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="Devices have to show a certificate of this authority (PEM).")
    ] = None,
    tokens: Annotated[Path | None, typer.Option(help="File of bearer tokens: NAME TOKEN [MODEL …] a line.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine although nothing is encrypted.")
    ] = False,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of Prometheus metrics and a status page.")
    ] = None,
    engine: Annotated[
        EngineName, typer.Option(help="One process here, or replicas on a Ray cluster, behind Ray Serve.")
    ] = EngineName.PROCESS,
    address: Annotated[str, typer.Option(help="With ray: the cluster's head; a cluster of its own by default.")] = "",
    replicas: Annotated[
        str, typer.Option(help="With ray: replicas of each model, as MIN-MAX; more streams bring more of them.")
    ] = "1-4",
    allow_load: Annotated[
        bool, typer.Option("--allow-load", help="Let clients load and unload models of the folder over the wire.")
    ] = False,
    otel: Annotated[
        bool, typer.Option("--otel", help="Make OpenTelemetry spans; run it under opentelemetry-instrument.")
    ] = False,
    watch: Annotated[
        float, typer.Option(min=0, help="Seconds between looks at the folder; 0 for looking on SIGHUP alone.")
    ] = 0.0,
    threads: Threads = 0,
    runs: Annotated[
        int, typer.Option(min=0, help="Runs of one tail at the same time; 0 for as many as pay, which is measured.")
    ] = 0,
    max_batch: Annotated[int, typer.Option(min=1, help="Frames that share one run of a tail, at most.")] = 32,
    max_wait: Annotated[float, typer.Option(help="Seconds in the queue above which a frame is turned away.")] = 0.5,
    max_stream: Annotated[
        float, typer.Option(help="Seconds after which a stream is told to connect again, so that streams spread.")
    ] = 0.0,
    provider: Annotated[
        list[str] | None, typer.Option(help="Execution providers, best first; the best there are by default.")
    ] = None,
    max_frame_bytes: Annotated[int, typer.Option(min=1, help="Largest payload of a frame that is accepted.")] = 8 << 20,
    log_format: Annotated[LogFormatName, typer.Option(help="The log on stderr, for people or for programs.")] = (
        LogFormatName.TEXT
    ),
    log_level: Annotated[
        LogLevel | None, typer.Option(help="Least level that is logged; warning for text, info for JSON by default.")
    ] = None,
    drain: Annotated[float, typer.Option(help="Seconds that SIGTERM leaves for what is under way.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Run the tails of a folder of bundles until SIGTERM, then answer what was taken and leave.

    Example: narrows serve bundles/ --port 8470
    """
    need("server", "grpc_health", "grpc_reflection", "prometheus_client")
    from ..runtime.frame import Limits
    from ..runtime.session import SessionOptions
    from ..server import BatchOptions, ServeOptions, TlsOptions, best_providers
    from ..server import serve as serve_until_told

    _configure_log(log_format, log_level)
    if (tls_cert is None) != (tls_key is None) or (client_ca is not None and tls_cert is None):
        raise UsageError("--tls-cert and --tls-key go together, and --client-ca goes with them")
    options = ServeOptions(
        bundles=bundles,
        host=host,
        port=port,
        tls=TlsOptions(tls_cert, tls_key, client_ca) if tls_cert is not None and tls_key is not None else None,
        tokens=tokens,
        insecure=insecure,
        limits=Limits(max_frame_bytes=max_frame_bytes),
        batch=BatchOptions(runs=runs, max_batch=max_batch, max_wait_s=max_wait),
        session=SessionOptions(tuple(provider or best_providers()), threads=threads),
        metrics_port=metrics_port,
        allow_load=allow_load,
        tracing=otel,
        watch_s=watch,
        max_stream_s=max_stream,
        drain_s=drain,
    )

    def ready(server: Listening) -> None:
        output.listening(server, as_json=as_json)

    if engine is EngineName.RAY:
        from ..server.ray import RayOptions, serve_on_ray

        least, most = _replicas(replicas)
        raise typer.Exit(serve_on_ray(options, RayOptions(address, least, most), ready=ready))
    if address:
        raise UsageError("--address is the cluster's of --engine ray; --host says where this process listens")
    raise typer.Exit(serve_until_told(options, ready=ready))


def _replicas(said: str) -> tuple[int, int]:
    least, _, most = said.partition("-")
    if not least.isdigit() or not (most or least).isdigit():
        raise UsageError(f"--replicas is MIN-MAX, such as 1-4, and not {said!r}")
    return int(least), int(most or least)


def _configure_log(form: LogFormatName, level: LogLevel | None) -> None:
    from ..server.logs import LogFormat, configure

    chosen = level or (LogLevel.INFO if form is LogFormatName.JSON else LogLevel.WARNING)
    least = min(logging.getLevelNamesMapping()[chosen.upper()], logging.getLogger().level)  # --debug asks for all
    configure(LogFormat(form.value), least)


@app.command()
def certs(
    folder: Annotated[Path, typer.Argument(help="Where the PEM files go; an authority that is there is used again.")],
    host: Annotated[list[str] | None, typer.Option(help="Name or address that devices reach the server under.")] = None,
    client: Annotated[list[str] | None, typer.Option(help="Name of a device that gets a certificate too.")] = None,
    days: Annotated[int, typer.Option(min=1, help="How long they are valid.")] = 365,
) -> None:
    """Make an authority and certificates of its own, for development and for closed networks.

    Example: narrows certs pki/ --host edge.local --client pi-7
    """
    need("server", "cryptography")
    from ..server.certs import CertOptions, make_certificates

    hosts = {"hosts": tuple(host)} if host else {}
    for path in make_certificates(CertOptions(folder, clients=tuple(client or ()), days=days, **hosts)):
        print(path)
