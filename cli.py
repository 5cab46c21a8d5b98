"""The command line: one function a verb. What a verb does lives in the rooms; here it is asked for and printed."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .runtime.errors import FramesFailedError, MissingDependencyError, NarrowsError, UsageError
from .runtime.manifest import Half

app = typer.Typer(
    name="narrows",
    help="Split computing for edge inference: head on the device, tail on a server, few bytes between.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.callback()
def _settings(
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error, and log everything.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if debug:
        os.environ["NARROWS_DEBUG"] = "1"


def _need(extra: str, *modules: str) -> None:
    """Say which extra brings what is missing.

    Raises:
        MissingDependencyError: naming the line that installs it.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingDependencyError(f"this needs {', '.join(missing)}: pip install 'narrows[{extra}]'")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Try everything this installation needs, and say what is missing.

    Example: narrows doctor
    """
    from . import doctor as examination
    from . import output

    findings = list(examination.examine())
    output.findings(findings, as_json=as_json)
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(1)


@app.command()
def cuts(
    model: Annotated[str, typer.Argument(help="An ONNX file, or package.module:callable that gives a torch module.")],
    show_all: Annotated[bool, typer.Option("--all", help="Every cut, not only those that none beats.")] = False,
    as_json: Json = False,
) -> None:
    """List the tensors that a model can be cut at, best first.

    Example: narrows cuts mobilenet_v2.onnx
    """
    _need("partition", "torch", "onnx", "onnx_ir")
    from . import output
    from .partitioner import list_cuts

    output.cuts(list_cuts(model), show_all=show_all, as_json=as_json)


@app.command()
def cut(
    model: Annotated[str, typer.Argument(help="An ONNX file, or package.module:callable that gives a torch module.")],
    at: Annotated[str, typer.Option(help="The tensor to cut at, as `narrows cuts` names it.")],
    calibrate: Annotated[Path, typer.Option(help="A folder of pictures, or an .npz or .npy of inputs.")],
    output_path: Annotated[Path, typer.Option("--output", "-o", help="The bundle's folder, to be made.")],
    preprocess: Annotated[
        str, typer.Option(help="imagenet; size=227,order=bgr,mean=104/117/123,…; or none for raw tensors.")
    ] = "none",
    labels: Annotated[Path | None, typer.Option(help="A file with one class name a line.")] = None,
    name: Annotated[str | None, typer.Option(help="What devices ask for; the output folder's name by default.")] = None,
    no_quantiser: Annotated[
        bool, typer.Option("--no-quantiser", help="Let the tensors of the cut cross as they are.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Cut a model into a bundle: head, tail, and the tables between them, proven.

    Example: narrows cut net.onnx --at relu_7 --calibrate photos/ --preprocess imagenet -o bundles/net
    """
    _need("partition", "torch", "onnx", "onnx_ir")
    from . import output
    from .partitioner import Quantiser, cut_model

    with output.progress() as step:
        bundle = cut_model(
            model,
            at,
            output=output_path,
            calibrate=calibrate,
            preprocess=preprocess,
            labels=labels or (),
            quantiser=None if no_quantiser else Quantiser(),
            name=name,
            progress=step,
        )
    output.bundle(bundle, as_json=as_json)


@app.command()
def serve(
    bundles: Annotated[Path, typer.Argument(help="A folder of bundles, or one bundle.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any that is free.")] = 8470,
    threads: Annotated[int, typer.Option(min=0, help="Threads a tail may use; 0 for one a core.")] = 0,
    max_batch: Annotated[int, typer.Option(min=1, help="Frames that share one run of a tail, at most.")] = 32,
    max_frame_bytes: Annotated[int, typer.Option(min=1, help="Largest payload of a frame that is accepted.")] = 8 << 20,
    drain: Annotated[float, typer.Option(help="Seconds that SIGTERM leaves for what is under way.")] = 10.0,
    max_wait: Annotated[float, typer.Option(help="Seconds in the queue above which a frame is turned away.")] = 0.5,
    provider: Annotated[
        list[str] | None, typer.Option(help="Execution providers, best first; by default the best there are.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM of the server's certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM of its private key.")] = None,
    client_ca: Annotated[Path | None, typer.Option(help="PEM of the authority that devices must be of.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="File of bearer tokens: NAME TOKEN [MODEL ...] a line.")] = None,
    watch: Annotated[float, typer.Option(help="Seconds between looks for new bundles; 0 looks on SIGHUP alone.")] = 0.0,
    max_stream: Annotated[
        float, typer.Option(help="Seconds after which a stream is told to connect again, so that streams spread.")
    ] = 0.0,
    otel: Annotated[
        bool, typer.Option("--otel", help="Make OpenTelemetry spans; run it under opentelemetry-instrument.")
    ] = False,
    metrics_port: Annotated[int | None, typer.Option(help="Port of Prometheus metrics and the status page.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine although nothing is encrypted.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the tails of a folder of bundles until SIGTERM, then answer what was taken and leave.

    Example: narrows serve bundles/ --port 8470
    """
    _need("server", "grpc_health", "grpc_reflection")
    from . import output
    from .runtime.frame import Limits
    from .runtime.session import SessionOptions
    from .server import BatchOptions, ServeOptions, TlsOptions, best_providers
    from .server import serve as serve_until_told

    if (tls_cert is None) != (tls_key is None) or (client_ca and not tls_cert):
        raise UsageError("--tls-cert and --tls-key go together, and --client-ca goes with them")

    options = ServeOptions(
        bundles=bundles,
        host=host,
        port=port,
        tls=TlsOptions(tls_cert, tls_key, client_ca) if tls_cert and tls_key else None,
        tokens=tokens,
        insecure=insecure,
        watch_s=watch,
        tracing=otel,
        max_stream_s=max_stream,
        metrics_port=metrics_port,
        drain_s=drain,
        limits=Limits(max_frame_bytes=max_frame_bytes),
        batch=BatchOptions(max_batch=max_batch, max_wait_s=max_wait),
        session=SessionOptions(tuple(provider or best_providers()), threads),
    )
    raise typer.Exit(serve_until_told(options, ready=lambda address: output.listening(address, as_json=as_json)))


@app.command()
def certs(
    folder: Annotated[Path, typer.Argument(help="Where the PEM files go.")],
    host: Annotated[
        list[str] | None, typer.Option(help="Names and addresses that devices reach the server under.")
    ] = None,
    client: Annotated[list[str] | None, typer.Option(help="Devices that get a certificate, for mutual TLS.")] = None,
    days: Annotated[int, typer.Option(min=1, help="Validity.")] = 365,
) -> None:
    """Make a development authority, a certificate for the server, and one for each device.

    Example: narrows certs certs/ --host tails.lan --client greenhouse
    """
    from .server.certs import CertOptions, make_certificates

    hosts = {"hosts": tuple(host)} if host else {}
    for path in make_certificates(CertOptions(folder, clients=tuple(client or ()), days=days, **hosts)):
        print(path)


@app.command()
def run(
    bundle: Annotated[Path, typer.Argument(help="A bundle: its folder or zip archive. The device's half is enough.")],
    server: Annotated[str, typer.Option(help="The server's HOST:PORT.")],
    source: Annotated[
        str, typer.Option("--input", help="A picture, a folder, a glob, an .npz or .npy, a video file, or camera:0.")
    ],
    cut_name: Annotated[
        str | None, typer.Option("--cut", help="Which of the bundle's cuts; its first by default.")
    ] = None,
    quality: Annotated[int | None, typer.Option(help="0 is the smallest payload; the best by default.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds after which a frame without an answer is an error.")] = 10.0,
    threads: Annotated[int, typer.Option(min=0, help="Threads the head may use; 0 for one a core.")] = 0,
    window: Annotated[
        int, typer.Option(min=1, help="Frames under way at once: more for the rate, 1 for the delay.")
    ] = 8,
    save_outputs: Annotated[
        Path | None, typer.Option(help="Folder for the raw output tensors, one .npz a frame.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Stream inputs through the head here and the tail on a server, and print the predictions.

    Example: narrows run bundles/resnet --server 127.0.0.1:8470 --input photos/
    """
    from . import output
    from .device import run_source
    from .runtime.bundle import Bundle

    half = Bundle.open(bundle, Half.DEVICE)
    total = failed = 0
    with output.outcomes(as_json=as_json) as show:
        for outcome in run_source(
            half,
            server,
            source,
            cut=cut_name,
            quality=quality,
            timeout_s=timeout,
            threads=threads,
            window=window,
            save_outputs=save_outputs,
        ):
            show(outcome)
            total += 1
            failed += outcome.error is not None
    if failed:
        raise FramesFailedError(f"{failed} of {total} frames ended in an error; each says which above")


@app.command()
def demo(
    fresh: Annotated[bool, typer.Option("--fresh", help="Train and cut again, whatever is cached.")] = False,
    as_json: Json = False,
) -> None:
    """Train a digits classifier, cut it, serve its tail, stream pictures from a device, and compare.

    Example: narrows demo
    """
    _need("demo", "torch", "onnx", "onnx_ir", "sklearn", "grpc_health", "grpc_reflection")
    from . import demo as digits
    from . import output

    with output.progress() as step:
        report = digits.run(fresh=fresh, progress=step)
    output.demo(report, as_json=as_json)


def main() -> None:
    """Run the command line and exit: 0, or the exit code of what went wrong."""
    try:
        app()
    except NarrowsError as error:
        if os.environ.get("NARROWS_DEBUG"):
            raise
        print(f"narrows: {error.code}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader has seen enough: `narrows run … --json | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
