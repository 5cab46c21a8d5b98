"""`narrows cuts` and `narrows cut`: from a model to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..runtime.manifest import Half
from . import output
from .app import Json, app, need

Model = Annotated[
    str,
    typer.Argument(
        help="An ONNX file, torchvision:NAME, timm:NAME, hf:PATH, or package.module:callable that gives a torch module."
    ),
]
Weights = Annotated[str | None, typer.Option(help="A torch model's state dict, or `random`.")]
NEEDS = ("torch", "onnx", "onnxscript", "networkx")


@app.command()
def cuts(
    model: Model,
    weights: Weights = None,
    max_tensors: Annotated[int, typer.Option(min=1, help="Tensors to a cut, at most.")] = 3,
    show_all: Annotated[bool, typer.Option("--all", help="Every cut, not only those that none beats.")] = False,
    as_json: Json = False,
) -> None:
    """List where a model can be cut, best first.

    Example: narrows cuts mobilenet_v2.onnx
    """
    need("partition", *NEEDS)
    from ..partitioner import list_cuts

    output.cuts(list_cuts(model, max_tensors, weights=weights), show_all=show_all, as_json=as_json)


@app.command()
def cut(
    model: Model,
    output_path: Annotated[Path, typer.Option("--output", "-o", help="The bundle's folder, to be made.")],
    at: Annotated[
        str | None, typer.Option(help="Where to cut, as `narrows cuts` names it; the best single tensor by default.")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(help="What comes back, for a three-way cut: neither input nor answer leaves the device."),
    ] = None,
    calibrate: Annotated[Path | None, typer.Option(help="A folder of pictures, or an .npz or .npy of inputs.")] = None,
    preprocess: Annotated[
        str, typer.Option(help="imagenet; size=227,order=bgr,mean=104/117/123,…; or none for raw tensors.")
    ] = "none",
    labels: Annotated[Path | None, typer.Option(help="A file with one class name a line.")] = None,
    weights: Weights = None,
    name: Annotated[str | None, typer.Option(help="What devices ask for; the output folder's name by default.")] = None,
    no_quantiser: Annotated[
        bool, typer.Option("--no-quantiser", help="Let the tensors of the cut cross as they are.")
    ] = False,
    per_tensor: Annotated[
        bool,
        typer.Option("--per-tensor", help="One step for the whole tensor: often fewer bytes, a little less exact."),
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Give the device the whole model too: its fallback when the link fails.")
    ] = False,
    offload: Annotated[
        bool, typer.Option("--offload", help="Give the server the whole model too: it then takes pictures as well.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Cut a model into a bundle: head, tail, and the tables between them, proven.

    Example: narrows cut net.onnx --at relu_7 --calibrate photos/ --preprocess imagenet -o bundles/net
    """
    need("partition", *NEEDS)
    from ..partitioner import Quantiser, cut_model

    replaced = output_path.exists()
    with output.progress() as step:
        bundle = cut_model(
            model,
            at,
            output=output_path,
            calibrate=calibrate,
            preprocess=preprocess,
            labels=labels,
            until=until,
            weights=weights,
            quantiser=None if no_quantiser else Quantiser(per_channel=not per_tensor),
            whole=[half for half, wanted in ((Half.DEVICE, local), (Half.SERVER, offload)) if wanted],
            name=name,
            progress=step,
        )
    output.bundle(bundle, replaced=replaced, as_json=as_json)
