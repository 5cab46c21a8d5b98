"""`narrows deploy`: a board over ssh."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..runtime.errors import UsageError
from . import output
from .app import app
from .device import Ca, Cert, Key, TokenFile


@app.command()
def deploy(
    host: Annotated[str, typer.Argument(help="The board, as ssh takes it: USER@HOST.")],
    what: Annotated[str, typer.Argument(help="A bundle of this machine, or the name of a model on the server.")],
    server: Annotated[str, typer.Option(help="The server's HOST:PORT as the board reaches it; several with commas.")],
    source: Annotated[str, typer.Option("--input", help="What `narrows run --input` takes, there.")] = "camera:0",
    arguments: Annotated[
        str, typer.Option("--run", help="More options of `narrows run`, such as '--policy latency --deadline-ms 200'.")
    ] = "",
    wheel: Annotated[Path | None, typer.Option(help="The wheel to install; built of this checkout by default.")] = None,
    find_links: Annotated[
        Path | None, typer.Option(help="Folder with the wheels of all else, for a board without an index.")
    ] = None,
    no_service: Annotated[
        bool, typer.Option("--no-service", help="Install everything and start nothing, for a board without systemd.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look at the board, and say what would be done.")] = False,
    ssh_option: Annotated[list[str] | None, typer.Option(help="As ssh -o takes it, such as Port=2222.")] = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Install narrows on a board over ssh, with the device's half of a model, as a service that keeps running.

    Example: narrows deploy pi@raspberrypi resnet --server 192.168.1.10:8470 --input camera:0
    """
    from ..device.deploy import DeployOptions
    from ..device.deploy import deploy as deploy_to

    files = {"--ca": ca, "--cert": cert, "--key": key, "--token-file": token_file}
    try:
        words = tuple(shlex.split(arguments))
    except ValueError as error:
        raise UsageError(f"--run takes options as a shell does, and {arguments!r} are none ({error})") from None
    here = Path(what).exists()
    options = DeployOptions(
        server=server,
        source=source,
        bundle=Path(what) if here else None,
        model=None if here else what,
        arguments=words,
        wheel=wheel,
        find_links=find_links,
        secrets=tuple((option, file) for option, file in files.items() if file is not None),
        service=not no_service,
        dry_run=dry_run,
        ssh_options=tuple(ssh_option or ()),
    )
    deploy_to(host, options, output.step)
