"""`narrows audit`: how much of a picture comes back out of what crosses the link."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..runtime.errors import UsageError
from . import output
from .app import Json, Threads, app, need
from .bench import numbers
from .tables import out, print_json, table

if TYPE_CHECKING:
    from ..runtime.audit import Audit


@app.command()
def audit(
    bundle: Annotated[Path, typer.Argument(help="A bundle: its folder or zip archive. The device's half is enough.")],
    data: Annotated[Path, typer.Option(help="A folder of pictures, or an .npz or .npy of them; a few hundred.")],
    files: Annotated[
        list[Path] | None,
        typer.Option("--output", "-o", help="Where to write: NAME.html to look at, NAME.json for `plan --audit`."),
    ] = None,
    cut_name: Annotated[str | None, typer.Option("--cut", help="Which cut; the bundle's first by default.")] = None,
    quality: Annotated[
        str | None, typer.Option(help="Qualities, joined by commas; smallest, middle and best by default.")
    ] = None,
    pictures: Annotated[int, typer.Option(help="Pictures that are read, at most.")] = 400,
    size: Annotated[int, typer.Option(help="Longer side at which pictures are made again and compared.")] = 64,
    steps: Annotated[int, typer.Option(help="Of each attacker's training.")] = 400,
    minutes: Annotated[float | None, typer.Option(help="Time for all training; fewer steps where it is short.")] = None,
    seed: Annotated[int, typer.Option(help="Of the networks and of what is held out.")] = 0,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Train an attacker that makes pictures again out of a bundle's features, and say how well it does.

    Example: narrows audit bundles/resnet --data photos/ -o audit.html
    """
    need("partition", "torch", "onnx")
    from ..partitioner.audit import AuditOptions
    from ..partitioner.audit import audit as try_to_invert
    from ..report import write_report
    from ..runtime.audit import write
    from ..runtime.bundle import Bundle
    from ..runtime.manifest import Half

    for path in files or ():
        if path.suffix not in (".html", ".json"):
            raise UsageError(f"an audit is written as .html or .json, not as {path.name}")
    options = AuditOptions(
        cut=cut_name,
        qualities=tuple(numbers("--quality", quality, int)),
        pictures=pictures,
        size=size,
        steps=steps,
        minutes=minutes,
        seed=seed,
        threads=threads,
    )
    with output.progress() as step:
        found = try_to_invert(Bundle.open(bundle, Half.DEVICE), data, options, step)
    for path in files or ():
        if path.suffix == ".json":
            write(found, path)
        else:
            write_report(path, None, found)
    if as_json:
        print_json(asdict(found))
    else:
        _show(found)


def _show(found: Audit) -> None:
    height, width = found.size
    title = f"{found.tried_on} pictures of {width}×{height}, held out of {found.trained_on + found.tried_on}"
    made = table(title, "made again from", "bytes", "PSNR, dB", "SSIM")
    for row in found.rows:
        size_bytes = "–" if row.bytes is None else f"{row.bytes:,.0f}"
        made.add_row(row.what, size_bytes, f"{row.psnr_db:.1f}", f"{row.ssim:.3f}")
    console = out()
    console.print(made)
    console.print(found.says)
    if found.cut_short:
        console.print("The time was too short for all steps: an attacker with more of it gets more (--minutes).")
