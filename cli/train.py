"""`narrows train`: a bottleneck, trained into a teacher."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ..runtime.errors import UsageError
from . import output
from .app import Json, app, need

_NEEDS = ("torch", "onnx", "onnxscript", "networkx")


@app.command()
def train(
    teacher: Annotated[
        str,
        typer.Option(help="torchvision:NAME, timm:NAME, package.module:callable, or an ONNX classifier."),
    ],
    data: Annotated[
        str, typer.Option(help="A folder of class folders, an .npz with x and y, digits, or package.module:callable.")
    ],
    run: Annotated[Path, typer.Option("--output", "-o", help="The run's folder; the same again goes on where it was.")],
    weights: Annotated[str | None, typer.Option(help="The teacher's state dict.")] = None,
    preprocess: Annotated[
        str, typer.Option(help="imagenet; size=144,mean=…,std=…; as `narrows cut` takes it.")
    ] = "imagenet",
    at: Annotated[
        str | None, typer.Option(help="The module whose output the decoder restores; proposed by default.")
    ] = None,
    method: Annotated[str, typer.Option(help="bottlefit, entropic or ladder.")] = "bottlefit",
    channels: Annotated[int, typer.Option(min=1, help="Channels of the bottleneck.")] = 12,
    stride: Annotated[int | None, typer.Option(help="Pixels a side to one column of it: 8, 16, 32 …")] = None,
    levels: Annotated[int | None, typer.Option(help="Size of the alphabet.")] = None,
    target_bytes: Annotated[
        str | None, typer.Option(help="Bytes a frame to train for: one for entropic, 40,80,160 for ladder.")
    ] = None,
    beta: Annotated[str | None, typer.Option(help="Loss for a byte, where no bytes are asked for.")] = None,
    head_macs: Annotated[int | None, typer.Option(min=1, help="Most multiply-accumulates of the encoder.")] = None,
    head_params: Annotated[int | None, typer.Option(min=1, help="Most parameters of the encoder.")] = None,
    stem: Annotated[
        str, typer.Option(help="The teacher's module up to which the encoder is its own; auto, or none.")
    ] = "auto",
    inherit: Annotated[
        bool,
        typer.Option(help="Begin with the teacher's own layers on both sides of a principal-component projection."),
    ] = False,
    decoder_width: Annotated[int | None, typer.Option(min=1, help="Channels inside the decoder.")] = None,
    decoder_blocks: Annotated[int, typer.Option(min=0, help="Residual blocks of the decoder.")] = 2,
    pair: Annotated[
        str | None, typer.Option(help="package.module:callable that returns an encoder and a decoder of your own.")
    ] = None,
    tail: Annotated[
        list[str] | None,
        typer.Option(
            help="A further tail: NAME=reconstruct, classify:DATA, segment:FILE.npz or package.module:callable."
        ),
    ] = None,
    early_exit: Annotated[bool, typer.Option("--exit", help="Train an early exit for the device.")] = False,
    epochs: Annotated[
        str, typer.Option(help="Of the two stages, and of a third in which everything learns.")
    ] = "10,20",
    batch: Annotated[int, typer.Option(min=2)] = 128,
    rates: Annotated[str, typer.Option(help="Largest learning rate of each stage.")] = "2e-3,1e-3",
    augment: Annotated[str, typer.Option(help="none, characters, small-pictures or photographs.")] = "none",
    mix: Annotated[float, typer.Option(help="Share of pictures into which another one is mixed.")] = 0.0,
    distil_weight: Annotated[
        float, typer.Option(help="Of the teacher's answers in stage 2; the labels have the rest.")
    ] = 0.9,
    temperature: Annotated[float, typer.Option(help="That answers are softened by before they are distilled.")] = 4.0,
    freeze_encoder: Annotated[
        bool | None, typer.Option("--freeze-encoder/--tune-encoder", help="In stage 2; the method says by default.")
    ] = None,
    views: Annotated[
        int,
        typer.Option(min=0, help="Augmented versions of each picture, whose teacher's answers are kept; 0: new ones."),
    ] = 0,
    patience: Annotated[int | None, typer.Option(min=1, help="Epochs without progress that end a stage.")] = None,
    validation: Annotated[float, typer.Option(help="Share that is held out where the data say nothing.")] = 0.15,
    seed: Annotated[int, typer.Option()] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Of torch; 0 for one a core.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Threads that prepare batches; 0 for half of the cores.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps …")] = "cpu",
    precision: Annotated[str, typer.Option(help="float32, or bfloat16 where the processor has it.")] = "float32",
    name: Annotated[str | None, typer.Option(help="What devices ask for; the run's name by default.")] = None,
    as_json: Json = False,
) -> None:
    """Train a bottleneck into a teacher, and write it as a bundle.

    Example: narrows train --teacher models:resnet20 --weights resnet20.pt --data cifar.npz --method ladder
    --target-bytes 40,80,160 --augment small-pictures -o runs/cifar
    """
    # Threads that wait should not spin: on a machine that does other work, spinning takes ten times the time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    need("train", *_NEEDS)
    from ..partitioner.training import AUGMENTATIONS, DEFAULT_BETA, DataOptions, Teacher, TrainOptions, run_recipe

    if augment not in AUGMENTATIONS:
        raise UsageError(f"--augment is one of {', '.join(AUGMENTATIONS)}, not {augment!r}")
    options = TrainOptions(
        method=cast(Any, method),  # checked there
        channels=channels,
        stride=stride,
        levels=levels,
        target_bytes=_numbers(target_bytes, "target-bytes") if target_bytes else (),
        beta=_numbers(beta, "beta") if beta else DEFAULT_BETA,
        head_macs=head_macs,
        head_params=head_params,
        stem=stem,
        inherit=inherit,
        decoder_width=decoder_width,
        decoder_blocks=decoder_blocks,
        epochs=tuple(int(n) for n in _numbers(epochs, "epochs")),
        batch=batch,
        rates=_numbers(rates, "rates"),
        distil_weight=distil_weight,
        temperature=temperature,
        augmentation=replace(AUGMENTATIONS[augment], mix=mix),
        freeze_encoder=freeze_encoder,
        exit=early_exit,
        patience=patience,
        views=views,
        seed=seed,
        threads=threads,
        workers=workers,
        device=device,
        precision=cast(Any, precision),
    )
    with output.progress() as step:
        report = run_recipe(
            Teacher.load(teacher, weights, preprocess),
            data,
            options,
            output=run,
            at=at,
            pair=pair,
            tails=tail or (),
            name=name,
            data_options=DataOptions(validation=validation, seed=seed),
            progress=step,
        )
    output.trained(report, as_json=as_json)


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found:
        raise UsageError(f"--{option} takes numbers joined by commas, not {text!r}")
    return found
