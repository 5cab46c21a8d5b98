"""`narrows doctor` and `narrows demo`: the whole of it, looked at and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import output
from .app import Json, Threads, app, need


@app.command()
def doctor(
    bundle: Annotated[
        Path | None, typer.Argument(help="Try its head on every execution provider too. The device's half is enough.")
    ] = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Try everything this installation needs, and say what is missing.

    Example: narrows doctor bundles/resnet
    """
    from .. import doctor as examination

    findings = list(examination.examine())
    if bundle is not None:
        findings += examination.examine_bundle(bundle, threads)
    output.findings(findings, as_json=as_json)
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(1)


@app.command()
def demo(
    fresh: Annotated[bool, typer.Option("--fresh", help="Train and cut again, whatever is cached.")] = False,
    as_json: Json = False,
) -> None:
    """Train a digits classifier, cut it, serve its tail, stream pictures from a device, and compare.

    Example: narrows demo
    """
    need("demo", "torch", "onnx", "onnxscript", "networkx", "sklearn", "grpc_health", "grpc_reflection")
    from .. import demo as digits

    with output.progress() as step:
        report = digits.run(fresh=fresh, progress=step)
    output.demo(report, as_json=as_json)
